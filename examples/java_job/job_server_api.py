import glob
import os
import subprocess

POM = """<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>spark.jobserver</groupId>
  <artifactId>job-server-api</artifactId>
  <version>installed</version>
  <packaging>pom</packaging>
  <dependencies>{}
  </dependencies>
</project>"""
DEPENDENCY = """
    <dependency>
      <groupId>spark.jobserver.installed</groupId>
      <artifactId>{}</artifactId>
      <version>installed</version>
      <scope>system</scope>
      <systemPath>{}</systemPath>
    </dependency>"""

class_path = subprocess.check_output(["jobserver", "jvm-api"], text=True).strip().split(os.pathsep)
jars = [jar for entry in class_path for jar in glob.glob(f"{entry}.jar" if entry.endswith("*") else entry)]
print(POM.format("".join(DEPENDENCY.format(os.path.basename(jar)[: -len(".jar")], jar) for jar in jars)))
