package launcherjobs;

import com.sun.net.httpserver.HttpServer;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Timer;
import java.util.TimerTask;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.ThreadFactory;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;

/** Starts threads that write to a file for as long as nobody ends them. */
public final class Remains {
  private static final ExecutorService SHARED = Executors.newFixedThreadPool(2);

  private final Path path;
  private final Path gate;

  public Remains(String path, String gate) {
    this.path = Path.of(path);
    this.gate = Path.of(gate);
  }

  public void start(String kind) throws IOException {
    switch (kind) {
      case "thread" -> new Thread(this::write).start();
      case "stubborn" -> new Thread(this::writeUntilGate, "stubborn").start();
      case "hostile" -> startHostile();
      case "timer" -> new Timer("test-timer").schedule(task(), 0, 10);
      case "scheduled" -> Executors.newScheduledThreadPool(2).scheduleAtFixedRate(this::line, 0, 10, TimeUnit.MILLISECONDS);
      case "queue" -> fill(Executors.newFixedThreadPool(2));
      case "again" -> submitAgain(Executors.newSingleThreadExecutor());
      case "static" -> fill(SHARED);
      case "common" -> again(CompletableFuture.delayedExecutor(10, TimeUnit.MILLISECONDS));
      case "server" -> serve();
      default -> throw new IllegalArgumentException(kind);
    }
  }

  /** Returns what a task of the static pool returns. */
  public static int useStatic() throws Exception {
    return SHARED.submit(() -> 7).get(30, TimeUnit.SECONDS);
  }

  private TimerTask task() {
    return new TimerTask() {
      @Override
      public void run() {
        line();
      }
    };
  }

  private void fill(ExecutorService pool) {
    for (int number = 0; number < 100; number++) pool.execute(this::writeForAWhile);
  }

  /** A task that ignores interrupts, and is submitted again at its end. */
  private void submitAgain(ExecutorService pool) {
    pool.execute(() -> {
      long end = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(200);
      while (System.nanoTime() < end) line();
      submitAgain(pool);
    });
  }

  /** A pool that cannot be examined. */
  private void startHostile() {
    ThreadPoolExecutor pool = new ThreadPoolExecutor(1, 1, 0, TimeUnit.SECONDS, new LinkedBlockingQueue<>()) {
      @Override
      public ThreadFactory getThreadFactory() {
        if (Thread.currentThread().getStackTrace()[2].getClassName().startsWith("java.")) return super.getThreadFactory();
        throw new IllegalStateException("hostile");
      }
    };
    pool.execute(() -> {
      writeUntilGate();
      pool.shutdown();
    });
  }

  private void again(Executor executor) {
    CompletableFuture.runAsync(this::line, executor).thenRun(() -> again(executor));
  }

  private void serve() throws IOException {
    HttpServer server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
    server.createContext("/", exchange -> {
      exchange.sendResponseHeaders(204, -1);
      exchange.close();
    });
    server.start();
    Files.writeString(path, Integer.toString(server.getAddress().getPort()));
  }

  private void write() {
    try {
      while (true) {
        line();
        Thread.sleep(10);
      }
    } catch (InterruptedException end) {
      line();
    }
  }

  private void writeForAWhile() {
    try {
      line();
      Thread.sleep(200);
    } catch (InterruptedException end) {
      line();
    }
  }

  private void writeUntilGate() {
    while (!Files.exists(gate)) {
      line();
      try {
        Thread.sleep(10);
      } catch (InterruptedException ignored) {
      }
    }
  }

  private void line() {
    try (FileOutputStream file = new FileOutputStream(path.toFile(), true)) {
      file.write('\n');
    } catch (IOException error) {
      throw new UncheckedIOException(error);
    }
  }
}
