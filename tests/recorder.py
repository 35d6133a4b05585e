"""A tracker that only remembers, so that no tracker package is needed."""

from typing import ClassVar

from accelerate.tracking import GeneralTracker


class Recorder(GeneralTracker):
    name = "recorder"
    requires_logging_directory = True
    made: ClassVar = []

    def __init__(self, run_name="", logging_dir=""):
        super().__init__()
        self.run_name, self.logging_dir = run_name, logging_dir
        self.rows, self.configs, self.finished = [], [], 0
        Recorder.made.append(self)

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.configs.append(values)

    def log(self, values, step=None, **_):
        self.rows.append({"step": step, **values})

    def finish(self):
        self.finished += 1
