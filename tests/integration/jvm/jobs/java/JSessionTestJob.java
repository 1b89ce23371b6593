package spark.jobserver;

import com.typesafe.config.Config;
import java.util.List;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.SparkSession;
import spark.jobserver.api.JobEnvironment;
import spark.jobserver.japi.JSessionJob;

public class JSessionTestJob extends JSessionJob<Row[]> {

    @Override
    public Row[] run(SparkSession spark, JobEnvironment runtime, Config data) {
        List<Row> rows = spark.sql(data.getString("sql")).collectAsList();
        return rows.toArray(new Row[0]);
    }

    @Override
    public Config verify(SparkSession spark, JobEnvironment runtime, Config config) {
        return config;
    }
}
