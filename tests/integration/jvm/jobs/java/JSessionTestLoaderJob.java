package spark.jobserver;

import com.typesafe.config.Config;
import java.util.Arrays;
import org.apache.spark.sql.Encoders;
import org.apache.spark.sql.SparkSession;
import spark.jobserver.api.JobEnvironment;
import spark.jobserver.japi.JSessionJob;

public class JSessionTestLoaderJob extends JSessionJob<Long> {

    @Override
    public Long run(SparkSession spark, JobEnvironment runtime, Config data) {
        spark.createDataset(Arrays.asList("Bob", "Sandy"), Encoders.STRING())
                .createOrReplaceTempView("java_names");
        return spark.table("java_names").count();
    }

    @Override
    public Config verify(SparkSession spark, JobEnvironment runtime, Config config) {
        return config;
    }
}
