package spark.jobserver;

import com.typesafe.config.Config;
import org.apache.spark.api.java.JavaSparkContext;

public class OldestJavaJob extends JavaSparkJob {

    @Override
    public Object runJob(JavaSparkContext jsc, Config config) {
        return jsc.parallelize(config.getIntList("numbers")).reduce(Integer::sum);
    }

    @Override
    public String invalidate(JavaSparkContext jsc, Config config) {
        return config.hasPath("numbers") ? null : "numbers are missing";
    }
}
