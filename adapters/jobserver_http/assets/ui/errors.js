// What matters in the text of an error, by the rules of the command line: the line that names the exception which
// decided, and the frames of the job's own code.

/** Path fragments of installed libraries and of the server's own code. */
const LIBRARIES = ["/site-packages/", "/dist-packages/", "/lib/python3.", "<frozen ", "/pyspark.zip/", "/jobserver_pyspark/runner/"];
/** The same for the names of classes on the JVM. */
const JVM_LIBRARIES = ["java.", "javax.", "jdk.", "sun.", "scala.", "org.apache.", "py4j."];
/** The directory in which the server has unpacked a package. */
const UNPACKED = /^ {2}File "[^"]*\/packages\/contents\/[0-9a-f]{64}-\w+\//gm;
const LEFT_OUT = "  …";

const isFrame = (line) => line.startsWith('  File "');

/** The last line that names an exception, below a traceback or as a cause on the JVM; otherwise the first line. */
export function decisiveLine(message) {
  const lines = message.trim().split("\n");
  let found = 0;
  let inTraceback = false;
  lines.forEach((line, at) => {
    if (line.includes("Traceback (most recent call last)")) {
      inTraceback = true;
    } else if ((inTraceback && /^\S/.test(line)) || line.startsWith("Caused by: ")) {
      found = at;
      inTraceback = false;
    }
  });
  return lines[found].replace(/^Caused by: /, "");
}

/** A text in which each row of frames that are not of the job's own code is one line. */
export function folded(text) {
  const kept = [];
  let inLibrary = false;
  for (const line of shortened(text).split("\n")) {
    if (isFrame(line)) inLibrary = LIBRARIES.some((part) => line.includes(part));
    else if (/^\s+at /.test(line)) inLibrary = isJvmLibrary(line);
    else if (/^\s+\.\.\. /.test(line)) inLibrary = true;
    else if (!line.startsWith("    ")) inLibrary = false;
    if (!inLibrary) kept.push(line);
    else if (kept.at(-1) !== LEFT_OUT) kept.push(LEFT_OUT);
  }
  return kept.join("\n");
}

function isJvmLibrary(line) {
  const method = line.trim().replace(/^at /, "").split("(")[0].split("/").at(-1);
  return JVM_LIBRARIES.some((prefix) => method.startsWith(prefix));
}

/**
 * The frames of a stack without those of libraries, and without what the message says already: Python ends a
 * traceback with the message, the JVM begins with it, and Spark appends the frames of a task to those of the driver.
 * Without a frame of the job's own code, all others.
 */
export function foldedStack(message, stack) {
  const said = message.trim();
  const told = new Set(said.split("\n").filter(isFrame));
  const lines = (said ? stack.replace(said, "") : stack).split("\n");
  let repeated = false;
  const frames = lines.filter((line) => {
    if (isFrame(line)) repeated = told.has(line);
    else if (!line.startsWith("    ")) repeated = false;
    return !repeated && !/^[\w.$]+:\s*$/.test(line); // what is left of the line with the message
  }).join("\n").trimEnd();
  if (hasFrames(stack) && !hasFrames(frames)) return "";
  return hasFrames(folded(frames)) ? folded(frames) : shortened(frames);
}

/** Whether a text has frames of Python or of the JVM. */
export function hasFrames(text) {
  return text.split("\n").some((line) => isFrame(line) || /^\s+at /.test(line));
}

function shortened(text) {
  return text.replace(UNPACKED, '  File "');
}
