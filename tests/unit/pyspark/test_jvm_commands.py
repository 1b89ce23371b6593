"""What a runner asks the JVM about names, with a JVM of the test's own."""

from __future__ import annotations

from jobserver_pyspark.runner.jvm_commands import Commands

CLASS = "r\nu\nPythonRDD\nrj\ne\n"
METHOD = "r\nm\norg.apache.spark.SparkContext\ngetOrCreate\ne\n"
FIELD = "r\nm\norg.apache.spark.sql.SparkSession$\nMODULE$\ne\n"
PACKAGE = "r\nu\norg.apache.spark.sql\nrj\ne\n"
UNKNOWN = "r\nu\norg.apache.spark.Mine\nrj\ne\n"
FOREIGN = "r\nu\ncom.example\nrj\ne\n"
IMPORT = "j\ni\nrj\ncom.example.*\ne\n"
SPARK_IMPORT = "j\ni\nrj\norg.apache.spark.streaming.*\ne\n"
OWN_VIEW_IMPORT = "j\ni\no3\ncom.example.*\ne\n"
CALL = "c\no1\nsc\ne\n"
RELEASE = "m\nd\no1\ne\n"

ANSWERS = {
    CLASS: "ycorg.apache.spark.api.python.PythonRDD",
    METHOD: "ym",
    FIELD: "yro7",
    PACKAGE: "yp",
    UNKNOWN: "yp",
    FOREIGN: "yp",
    IMPORT: "yv",
    SPARK_IMPORT: "yv",
    OWN_VIEW_IMPORT: "yv",
    CALL: "yro2",
    RELEASE: "yv",
}


class Jvm:
    """Answers commands, and records them."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def send_command(self, command: str) -> str:
        self.asked.append(command)
        return ANSWERS[command]


def test_an_answer_that_cannot_change_is_asked_for_once() -> None:
    jvm = Jvm()
    commands = Commands(jvm, {})
    for _ in range(2):
        for command in (CLASS, METHOD, PACKAGE):
            assert commands(command) == ANSWERS[command]
    assert jvm.asked == [CLASS, METHOD, PACKAGE]


def test_a_name_without_a_class_and_the_value_of_a_field_are_asked_for_each_time() -> None:
    jvm = Jvm()
    commands = Commands(jvm, {})
    for _ in range(2):
        for command in (UNKNOWN, FOREIGN, FIELD):
            assert commands(command) == ANSWERS[command]
    assert jvm.asked == [UNKNOWN, FOREIGN, FIELD] * 2
    assert commands.new_names() == {}


def test_names_that_were_given_are_not_asked_for_and_new_ones_are_returned_once() -> None:
    jvm = Jvm()
    commands = Commands(jvm, {CLASS: ANSWERS[CLASS]})
    assert commands(CLASS) == ANSWERS[CLASS]
    commands(METHOD)
    assert jvm.asked == [METHOD]
    assert commands.new_names() == {METHOD: "ym"}
    assert commands.new_names() == {}


def test_an_import_of_a_job_forgets_all_names() -> None:
    jvm = Jvm()
    commands = Commands(jvm, {CLASS: ANSWERS[CLASS]})
    commands(IMPORT)
    commands(CLASS)
    assert jvm.asked == [IMPORT, CLASS]


def test_an_import_of_a_job_is_remembered_unless_it_is_one_of_spark() -> None:
    commands = Commands(Jvm(), {})
    commands(SPARK_IMPORT)
    commands(OWN_VIEW_IMPORT)
    assert commands.foreign_import is None
    commands(IMPORT)
    commands(SPARK_IMPORT)
    assert commands.foreign_import == "com.example.*"


def test_commands_are_counted_except_for_releases_and_those_of_the_runner_itself() -> None:
    commands = Commands(Jvm(), {})
    commands(CALL)
    commands(RELEASE)
    with commands.uncounted():
        commands(CALL)
    assert commands.count == 1
