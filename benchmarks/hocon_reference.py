"""Compares this library's HOCON with the reference implementation, on random documents.

Run: ``python benchmarks/hocon_reference.py --jar config-1.4.3.jar [--documents 20000] [--seed 1]``. Needs a
JDK, and the jar of ``com.typesafe:config`` (``mvn dependency:get -Dartifact=com.typesafe:config:1.4.3``
leaves it in ``~/.m2``). Prints how many documents differ and the shortest ones; ends with 1 if any does.

The documents concentrate on hard cases: objects opened again and again, ``+=``, substitutions that lead to
where they stand, and includes. ``--kind circles`` makes little else than circles, includes below a path, and
re-opened objects. ``--keys Aa,BB,C`` has keys with equal hash codes.

Not counted are:

- texts without quotes beside a list or an object, which are not generated: the reference drops them
  without a word, this library refuses them;
- documents for which the reference reports a bug in itself (``BugOrBroken``);
- documents in which the reference contradicts itself: unrelated keys change what the others mean. Its cache
  of resolved nodes (``BadMap``) loses values. In a circle, a substitution is first found to have no value,
  and later to have one, and the cache keeps both: the newer one first, until it grows, which reverses their
  order. Then the circle is resolved a second time, from elsewhere. The cache grows with its 3rd, 12th, 30th,
  62nd, 128th, 258th, 522nd and 2054th entry; each substitution adds one. So 600 unrelated ones at its
  beginning put a document of ordinary size between the last two, where nothing is lost: this library must
  give the answer that the reference gives there.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobserver_core.config.hocon.nodes import Include, Object, Source
from jobserver_core.config.hocon.resolution import Resolver
from jobserver_core.config.hocon.syntax import Parser
from jobserver_core.errors import InvalidConfig

REFERENCE = """
import com.typesafe.config.*;
import java.io.*;
import java.util.Map;

public class Reference {
  static ConfigIncluder files(Map<String, Object> texts) {
    return new ConfigIncluder() {
      public ConfigIncluder withFallback(ConfigIncluder other) { return this; }
      public ConfigObject include(ConfigIncludeContext context, String name) {
        if (!texts.containsKey(name)) return ConfigFactory.empty().root();
        return ConfigFactory.parseString((String) texts.get(name), context.parseOptions()).root();
      }
    };
  }

  static String answer(String line) {
    ConfigParseOptions json = ConfigParseOptions.defaults().setSyntax(ConfigSyntax.JSON);
    Map<String, Object> texts = ConfigFactory.parseString(line, json).root().unwrapped();
    try {
      ConfigParseOptions options = ConfigParseOptions.defaults().setIncluder(files(texts));
      Config config = ConfigFactory.parseString((String) texts.get("main"), options);
      return config.resolve(ConfigResolveOptions.noSystem()).root().render(ConfigRenderOptions.concise());
    } catch (ConfigException | StackOverflowError | AssertionError error) {
      return "!" + error.getClass().getSimpleName();
    }
  }

  public static void main(String[] args) throws IOException {
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, "UTF-8"));
    PrintStream out = new PrintStream(new FileOutputStream(FileDescriptor.out), true, "UTF-8");
    for (String line; (line = lines.readLine()) != null; ) out.println(answer(line));
  }
}
"""

Document = dict[str, str]
"""Texts by name: ``main``, and those that it includes."""


class Generator:
    """Makes random documents over a few keys, so that they meet often."""

    files = 0.3
    """The share of documents with files to include."""
    optional = 2 / 3
    """What share of substitutions are optional."""

    def __init__(self, seed: str, keys: list[str]) -> None:
        self._random = random.Random(seed)
        self._keys = keys
        self._files: Document = {}

    def document(self) -> Document:
        """Return a document, and perhaps files that it may include."""
        if self._random.random() < self.files:
            names = ("one", "two")[: self._random.randint(1, 2)]
            self._files = {name: "\n".join(self._members(1, includes=False)) for name in names}
        return {"main": "\n".join(self._members(0, includes=True)), **self._files}

    def _members(self, depth: int, *, includes: bool) -> Iterator[str]:
        for _ in range(self._random.randint(2, 5) if depth == 0 else self._random.randint(0, 3)):
            kind = self._random.random()
            if kind < 0.07 and includes and self._files:
                yield f'include "{self._random.choice(list(self._files))}"'
            elif kind < 0.25:
                yield f"{self._path()} += {self._value(depth, includes)}"
            elif kind < 0.55 and depth < 3:
                yield f"{self._path()} {self._object(depth, includes)}"
            else:
                yield f"{self._path()} = {self._value(depth, includes)}"

    def _path(self) -> str:
        return ".".join(
            self._random.choice(self._keys) for _ in range(self._random.choice([1, 1, 1, 2, 2, 3]))
        )

    def _value(self, depth: int, includes: bool) -> str:
        kind = self._random.random()
        if kind < 0.45:
            return self._scalar() if kind < 0.25 else self._substitution()
        if kind < 0.57:
            return "[" + ", ".join(self._item(includes) for _ in range(self._random.randint(0, 2))) + "]"
        if kind < 0.75 and depth < 3:
            return self._object(depth, includes)
        return " ".join(self._piece(depth, includes) for _ in range(2)) if kind < 0.92 else self._scalar()

    def _scalar(self) -> str:
        return self._random.choice(["1", "2.50", '"x"', '"y z"', "true", "null"])

    def _substitution(self) -> str:
        return "${" + ("?" if self._random.random() < self.optional else "") + self._path() + "}"

    def _item(self, includes: bool) -> str:
        kind = self._random.randrange(4)
        if kind == 0:
            return self._object(2, includes)
        return self._substitution() if kind == 1 else self._scalar()

    def _piece(self, depth: int, includes: bool) -> str:
        kind = self._random.random()
        if kind < 0.55:
            return self._substitution()
        if kind < 0.75:
            return f"[{self._item(includes)}]"
        return (
            self._object(depth + 1, includes)
            if kind < 0.9 and depth < 3
            else self._random.choice(['"x"', "1"])
        )

    def _object(self, depth: int, includes: bool) -> str:
        return "{ " + ", ".join(self._members(depth + 1, includes=includes)) + " }"


class Circles(Generator):
    """Makes documents of little else than optional substitutions, objects, and includes below a path."""

    files = 0.5
    optional = 6 / 7

    def _members(self, depth: int, *, includes: bool) -> Iterator[str]:
        for _ in range(self._random.randint(2, 5) if depth == 0 else self._random.randint(1, 3)):
            kind = self._random.random()
            if kind < 0.15 and includes and self._files and depth:
                yield f'include "{self._random.choice(list(self._files))}"'
            elif kind < 0.25:
                yield f"{self._path()} += {self._value(depth, includes)}"
            elif kind < 0.65 and depth < 3:
                yield f"{self._path()} {self._object(depth, includes)}"
            else:
                yield f"{self._path()} = {self._value(depth, includes)}"

    def _value(self, depth: int, includes: bool) -> str:
        if self._random.random() < 0.5:
            return self._substitution()
        return super()._value(depth, includes)


KINDS = {"mixed": Generator, "circles": Circles}


def parsed(document: Document) -> dict[str, Any] | None:
    """Return the value of a document in this library, or None if it is refused."""

    def parse(text: str, prefix: tuple[str, ...] = ()) -> Object:
        return Parser(Source(text), max_depth=100, include=included, prefix=prefix).parse()

    def included(statement: Include) -> Object | None:
        return parse(document[statement.name], statement.prefix) if statement.name in document else None

    try:
        return Resolver(parse(document["main"]), max_size=10**7, max_depth=100).resolve()
    except InvalidConfig:
        return None


def reference(documents: list[Document], jar: Path) -> list[str]:
    """Return the values of documents in the reference: JSON, or ``!`` and the name of an error."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "Reference.java").write_text(REFERENCE)
        subprocess.run(["javac", "-cp", str(jar), "-d", directory, f"{directory}/Reference.java"], check=True)
        done = subprocess.run(
            ["java", "-Xss4m", "-cp", f"{jar}:{directory}", "Reference"],
            input="".join(f"{json.dumps(document)}\n" for document in documents),
            capture_output=True,
            text=True,
            check=True,
        )
    return done.stdout.splitlines()


def differs(document: Document, answer: str) -> bool:
    """Return whether a document means something else here than to the reference."""
    if answer == "!BugOrBroken":
        return False
    ours = parsed(document)
    if answer.startswith("!") or ours is None:
        return not (answer.startswith("!") and ours is None)
    return json.dumps(ours, sort_keys=True) != json.dumps(json.loads(answer), sort_keys=True)


ROOMY = 600
"""So many unrelated keys that the cache of the reference does not grow during the rest of the document."""


def padded(document: Document, count: int) -> Document:
    """Return a document with unrelated keys at its beginning, in an object ``p``."""
    unrelated = ", ".join(f"p{index} = ${{?none}}" for index in range(count))
    return {**document, "main": f"p {{ {unrelated} }}\n{document['main']}"}


def contradicts_itself(document: Document, jar: Path) -> bool:
    """Return whether the reference's answer depends on unrelated keys, and ours is the one with many."""
    documents = [padded(document, count) for count in (*range(40), ROOMY)]
    answers = reference(documents, jar)
    return len(set(answers)) > 1 and not differs(documents[-1], answers[-1])


def main() -> int:
    """Compare, print the shortest documents that differ, and return how the process ends."""
    options = argparse.ArgumentParser(description="Compare HOCON with the reference implementation.")
    options.add_argument("--jar", type=Path, required=True, help="com.typesafe:config 1.4")
    options.add_argument("--documents", type=int, default=20_000)
    options.add_argument("--seed", default="1")
    options.add_argument("--kind", choices=KINDS, default="mixed")
    options.add_argument("--keys", default="a,b,c", help="the keys that documents use")
    given = options.parse_args()
    keys = given.keys.split(",")
    generator = KINDS[given.kind]
    documents = [generator(f"{given.seed}-{index}", keys).document() for index in range(given.documents)]
    answers = reference(documents, given.jar)
    different = [pair for pair in zip(documents, answers, strict=True) if differs(*pair)]
    values = sum(not answer.startswith("!") for answer in answers)
    undecided = [pair for pair in different if contradicts_itself(pair[0], given.jar)]
    different = [pair for pair in different if pair not in undecided]
    print(
        f"{len(documents)} documents, {values} with a value, {len(different)} differ; "
        f"in {len(undecided)} more the reference contradicts itself"
    )
    for document, answer in sorted(different, key=lambda pair: len(str(pair[0])))[:5]:
        print("\n".join(f"[{name}]\n{text}" for name, text in document.items()))
        print(f"  here      {parsed(document)}\n  reference {answer}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
