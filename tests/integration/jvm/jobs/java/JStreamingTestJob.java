package spark.jobserver;

import com.typesafe.config.Config;
import java.util.Arrays;
import java.util.LinkedList;
import org.apache.spark.api.java.JavaRDD;
import org.apache.spark.streaming.StreamingContext;
import org.apache.spark.streaming.api.java.JavaStreamingContext;
import spark.jobserver.api.JobEnvironment;
import spark.jobserver.japi.JStreamingJob;

public class JStreamingTestJob implements JStreamingJob<Integer> {

    @Override
    public Integer run(StreamingContext context, JobEnvironment runtime, Config data) {
        JavaStreamingContext jsc = new JavaStreamingContext(context);
        LinkedList<JavaRDD<Integer>> queue = new LinkedList<>();
        queue.add(jsc.sparkContext().parallelize(Arrays.asList(1, 2, 3, 4, 5)));
        jsc.queueStream(queue).countByValue().foreachRDD(rdd -> {
            System.out.println("batch of " + rdd.collect().size());
        });
        jsc.start();
        try {
            jsc.awaitTermination();
        } catch (InterruptedException e) {
            return -1;
        }
        return 1;
    }

    @Override
    public Config verify(StreamingContext context, JobEnvironment runtime, Config config) {
        return config;
    }
}
