package examples;

import java.util.List;
import java.util.Map;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.SparkSession;

/** Gives the first rows of a query; needs nothing but Spark on its class path. */
public class TopRows {

    /** The reason to refuse the configuration, or null. */
    public String validate(SparkSession spark, Map<String, Object> config) {
        return config.containsKey("sql") ? null : "sql is missing";
    }

    public List<Row> runJob(SparkSession spark, Map<String, Object> config) {
        int limit = Integer.parseInt(String.valueOf(config.getOrDefault("limit", 10)));
        return spark.sql(config.get("sql").toString()).takeAsList(limit);
    }
}
