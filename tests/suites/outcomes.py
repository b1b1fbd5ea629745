"""Runs tests of unittest by name and writes what became of each.

    outcomes.py FILE NAME...

A name is a module, class or test. One that can't be imported, for another version of Python has it no more, is left
out. FILE gets a line `outcome test` for each test, sorted; the exit status says only that all were run."""

import collections
import faulthandler
import importlib
import sys
import unittest


class Outcomes(unittest.TestResult):
    def __init__(self):
        super().__init__()
        self.of = collections.OrderedDict()

    def startTest(self, test):
        super().startTest(test)
        self.of[test.id()] = "unfinished"

    def note(self, test, outcome):
        # What is told of a part counts for the whole, the worst first.
        if self.of.get(test.id()) in (None, "unfinished", "passed"):
            self.of[test.id()] = outcome

    def addSuccess(self, test):
        super().addSuccess(test)
        self.note(test, "passed")

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.note(test, "failed")

    def addError(self, test, error):
        super().addError(test, error)
        self.note(test, "error")

    def addSkip(self, test, why):
        super().addSkip(test, why)
        self.note(test, "skipped")

    def addExpectedFailure(self, test, error):
        super().addExpectedFailure(test, error)
        self.note(test, "expected failure")

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self.note(test, "unexpected success")

    def addSubTest(self, test, part, error):
        super().addSubTest(test, part, error)
        if error is not None:
            self.note(test, "failed")


def is_there(name):
    parts = name.split(".")
    for n in range(len(parts), 1, -1):
        try:
            importlib.import_module(".".join(parts[:n]))
            return True
        except ModuleNotFoundError:
            continue
        except unittest.SkipTest:
            return False
    return False


def main():
    faulthandler.enable()
    names = [name for name in sys.argv[2:] if is_there(name)]
    outcomes = Outcomes()
    unittest.defaultTestLoader.loadTestsFromNames(names).run(outcomes)
    with open(sys.argv[1], "w") as file:
        for test, outcome in sorted(outcomes.of.items()):
            print(outcome, test, file=file)
    for test, text in outcomes.failures + outcomes.errors:
        print(f"--- {test.id()}\n{text}", file=sys.stderr)


main()
