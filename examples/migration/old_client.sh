#!/bin/sh
# The calls of a client of spark-jobserver, as they are: sh old_client.sh http://localhost:8090 wordcount.whl
set -eu
server=$1
package=$2

curl -sSf -H "Content-Type: application/python-wheel" --data-binary "@$package" "$server/binaries/wordcount"
curl -sSf -d "" "$server/contexts/py-context?context-factory=spark.jobserver.python.PythonSessionContextFactory"
curl -sSf -d 'input.string = "a b a"' \
  "$server/jobs?appName=wordcount&classPath=wordcount.WordCount&context=py-context&sync=true&timeout=120"
curl -sSf "$server/contexts"
curl -sSf -X DELETE "$server/contexts/py-context"
