
package spark.jobserver;

import com.typesafe.config.Config;
import java.util.List;
import org.apache.spark.api.java.JavaSparkContext;
import spark.jobserver.api.JobEnvironment;
import spark.jobserver.japi.JSparkJob;

/** Returns records, and the configuration itself. */
public class RecordJob implements JSparkJob<Object> {
    private record Point(int x, String name) {}

    private record Shape(List<Point> corners, Config config) {}

    public Object run(JavaSparkContext sc, JobEnvironment runtime, Config data) {
        return new Shape(List.of(new Point(1, "a"), new Point(2, null)), data);
    }

    public Config verify(JavaSparkContext sc, JobEnvironment runtime, Config config) {
        return config;
    }
}
