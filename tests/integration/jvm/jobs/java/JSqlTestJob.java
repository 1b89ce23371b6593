package spark.jobserver;

import com.typesafe.config.Config;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.SQLContext;
import spark.jobserver.api.JobEnvironment;
import spark.jobserver.japi.JSqlJob;
import spark.jobserver.japi.JavaValidationException;

public class JSqlTestJob implements JSqlJob<Row[]> {

    @Override
    public Row[] run(SQLContext sql, JobEnvironment runtime, Config data) {
        return (Row[]) sql.sql(data.getString("sql")).collect();
    }

    @Override
    public Config verify(SQLContext sql, JobEnvironment runtime, Config config) {
        if (!config.hasPath("sql")) {
            throw new JavaValidationException("sql is missing", new IllegalArgumentException("sql"));
        }
        return config;
    }
}
