package spark.jobserver;

import com.typesafe.config.Config;
import org.apache.spark.sql.hive.HiveContext;
import spark.jobserver.api.JobEnvironment;
import spark.jobserver.japi.JHiveJob;

public class JHiveTestLoaderJob implements JHiveJob<Long> {

    @Override
    public Long run(HiveContext hive, JobEnvironment runtime, Config data) {
        hive.sql("DROP TABLE IF EXISTS `default`.`java_addresses`");
        hive.sql(
                "CREATE TABLE `default`.`java_addresses` (`firstName` String, `city` String) "
                        + "ROW FORMAT DELIMITED FIELDS TERMINATED BY '|' STORED AS TextFile");
        hive.sql(
                String.format(
                        "LOAD DATA LOCAL INPATH '%s' OVERWRITE INTO TABLE `default`.`java_addresses`",
                        data.getString("path")));
        return hive.sql("SELECT * FROM `default`.`java_addresses`").count();
    }

    @Override
    public Config verify(HiveContext hive, JobEnvironment runtime, Config config) {
        return config;
    }
}
