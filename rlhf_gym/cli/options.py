"""What each command takes: light records, so that `--help` needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from rlhf_gym.labeling import PageSettings
from rlhf_gym.ranges import Count, Positive, Seed, Several, Whole, check_ranges
from rlhf_gym.settings import AdversarialConfig
from rlhf_gym.settings.stages import ItemKind, Labeler, Ties


@dataclass(frozen=True)
class LabelOptions:
    """What is labelled, and where the page is."""

    folder: Positional[Path]
    """The run's folder, or, with --items, any folder: the labels go into labels.sqlite in it."""
    items: Path | None = None
    """Responses to judge, JSONL of {"prompt", "responses"} or of single {"prompt", "response"}, instead of a run's."""
    skip_bad: bool = False
    """Leave out items of the file that cannot be used, and say how many; otherwise they stop the command."""
    compare: tuple[str, str] | None = None
    """Two policies, blind, on held-out prompts: "train" and "sft", say, or names of files in evaluate/samples."""
    kind: ItemKind = "comparison"
    """Whether people compare two responses, rank K of them, or rate each of K."""
    k: Count = 4
    """How many responses a ranking or a rating shows."""
    num_items: Count | None = None
    """How many items are put before people at most; by default all there are."""
    num_labels: Count | None = None
    """Labels after which it is enough; by default as many as the items want."""
    labels_per_item: Count = 1
    """Annotators who judge each item; 2 or more show how far they agree."""
    batch: str | None = None
    """Go on with this batch of the store; by default the run's last round."""
    page: Annotated[PageSettings, arg(name="")] = field(default_factory=PageSettings)
    """Where and how the labelling page is served."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.k < 2 and self.kind != "rating":
            raise ValueError(f"expected k >= 2, got {self.k}")
        if sum(given is not None for given in (self.items, self.compare, self.batch)) > 1:
            raise ValueError("expected one of --items, --compare and --batch, got several")


@dataclass(frozen=True)
class AdversarialOptions:
    """Options of `rlhf-gym adversarial`."""

    folder: Positional[Path]
    """The run's folder."""
    labeler: Labeler | None = None
    """The annotators, by default those of the run; "web" for people at a labelling page."""
    search: Annotated[AdversarialConfig, arg(name="")] = field(default_factory=AdversarialConfig)
    """How adversarial pairs are found."""


@dataclass(frozen=True)
class DiagnoseOptions:
    """Options of `rlhf-gym diagnose`."""

    reward_model: str
    """The reward model: a folder or a hub name, or the folder of an ensemble."""
    preferences: Path
    """Comparisons, JSONL of {"prompt", "chosen", "rejected"}. Best some that it was trained on, with --heldout."""
    heldout: Path | None = None
    """Comparisons that it was not trained on. By default those about half of the prompts of --preferences."""
    responses: Path | None = None
    """Responses to edit, JSONL of {"prompt", "response"}: those of the policy one is about to train. By default those
    of the held-out comparisons."""
    skip_bad: bool = False
    """Leave out rows of these files that cannot be used, and say how many; otherwise they stop the command."""
    count: Several = 250
    """At most this many responses are edited."""
    minutes: Positive = 10.0
    """About this long scoring may take. A slow reward model is asked about fewer responses and held-out comparisons,
    which is said."""
    words: tuple[str, ...] = ()
    """Words of your own that are inserted, to measure how they change the score."""
    json: Path | None = None
    """All results are written to this file as JSON."""
    seed: Seed = 0
    """Seed of the edits and of the split."""
    device: str = "auto"
    """Where the reward model runs; auto: a GPU where there is one."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class CheckRun:
    """Check a run's files."""

    run: Positional[Path]
    """The run's folder."""
    accept: bool = False
    """Take the files as they are from now on, changed or not."""


@dataclass(frozen=True)
class ReportOptions:
    """What the page is about, and where it goes."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN …]", help_behavior_hint="")]
    """Run folders. One: its report. Several: one page that compares them, finished or not."""
    output: Path | None = None
    """The page; by default report.html in the run's folder, of several runs runs_compared.html in this one."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("expected at least one run folder, got none: rlhf-gym report RUN [RUN …]")


@dataclass(frozen=True)
class Check:
    """Report bad, duplicate, contradictory, identical, blank and over-long records. Nothing is dropped."""

    source: Positional[str]
    """A file of preferences, or hub:NAME."""
    split: str = "train"
    """The split to read, of a data set on the hub."""
    tokenizer: str | None = None
    """Folder or name of the tokenizer that counts tokens."""
    chat_template: str = "auto"
    """What renders conversations before they are counted: the tokenizer's template (auto), none, or a file."""
    max_length: Count | None = None
    """Most tokens of a prompt with a response."""
    attribute: str | None = None
    """What rates a response in preferences of one response a row (HelpSteer); "helpfulness" by default."""
    shown: Whole = 5
    """How many records of each kind are shown."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Import:
    """Put preferences of a file or of the hub into a run's labels, beside what people said there."""

    source: Positional[str]
    """A file of preferences, or hub:NAME."""
    folder: Positional[Path]
    """The run's folder, or any other: the labels are in labels.sqlite in it."""
    split: str = "train"
    """The split to read, of a data set on the hub."""
    skip_bad: bool = False
    """Leave out rows that cannot be used, and say how many; otherwise they stop the command."""
    attribute: str | None = None
    """What rates a response in preferences of one response a row (HelpSteer); "helpfulness" by default."""


@dataclass(frozen=True)
class Export:
    """Write a run's labels as preferences, JSONL of {"prompt", "chosen", "rejected"}."""

    folder: Positional[Path]
    """The run's folder."""
    file: Positional[Path]
    """The file to write."""
    batch: str | None = None
    """Only this batch is written, such as "round 1"."""
    ties: Ties = "drop"
    """"drop" leaves ties out, "half" makes two opposite preferences of weight ½ of each."""
    log: bool = False
    """Write every record of the log instead, skips, undone ones and undos too."""


@dataclass(frozen=True)
class Agreement:
    """How far annotators agree with each other, and with the run's reward model."""

    folder: Positional[Path]
    """The run's folder."""


@dataclass(frozen=True)
class ListLessons:
    """List the lessons, their gates, and which of these are passed in this folder."""


@dataclass(frozen=True)
class CopyLessons:
    """Write the lessons into a folder to work in."""

    folder: Positional[Path]
    """The folder; made if there is none. Files that are there already are not overwritten."""
    format: Literal["ipynb", "py", "html"] = "ipynb"
    """Notebooks, Python files to run, or pages to read. For pages each lesson runs once, to show what it prints."""
    with_solutions: bool = False
    """Put the solutions in the exercises' places, for teachers."""


@dataclass(frozen=True)
class GradeLessons:
    """Run the lessons that students handed in, and write one CSV of the gates that they pass."""

    folder: Positional[Path]
    """A subfolder for each student, or files named after students; .py or .ipynb."""
    output: Path = Path("grades.csv")
    """The table: student, lesson, gate, passed, message, seconds."""
    seconds: Positive = 240.0
    """The longest that one file may run."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.output.is_dir():  # found before lessons run for an hour
            raise ValueError(f"expected a file to write the table to, got the folder {self.output}")
