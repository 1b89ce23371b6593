name := "words"
version := "1.0"

val installed = sys.process.Process(Seq("jobserver", "jvm-api")).!!.trim
  .split(java.io.File.pathSeparator).toSeq.map(file(_))
  .flatMap(jar => if (jar.getName == "*") IO.listFiles(jar.getParentFile, "*.jar").toSeq else Seq(jar))

// The Scala of the installed Spark: 2.13 for Spark 4, 2.12 for the packaged Spark 3.5.
scalaVersion := installed.map(_.getName).filter(_.startsWith("scala-library-"))
  .map(_.stripPrefix("scala-library-").stripSuffix(".jar")).head
scalacOptions += "-language:postfixOps"
Compile / unmanagedJars ++= installed.map(Attributed.blank(_))
