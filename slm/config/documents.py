"""Settings of the documents: where those of one source come from, and how they are cleaned."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from slm.config.setting import Fraction, PositiveFloat, PositiveInt, Section, Seed, setting
from slm.errors import excerpt, listing

FUNCTION = r"^.+\.py:[A-Za-z_][A-Za-z0-9_]*$"


class CleanConfig(Section):
    """What is repaired or dropped before encoding; every change is counted in the manifest."""

    fix_text: bool = setting(
        False, "Repair mojibake and normalise Unicode to NFC, by ftfy (the extra clean)."
    )
    min_chars: int = setting(1, "Drop documents of fewer characters.", ge=0)
    max_chars: PositiveInt | None = setting(None, "Drop documents of more characters.")
    exact_duplicates: Literal["across_splits", "everywhere"] = setting(
        "across_splits",
        "Which exact duplicates are dropped: those of train that are in val too, or every second "
        "copy.",
    )
    near_duplicates: Fraction | None = setting(
        None,
        "Drop documents whose MinHash similarity to an earlier one is at least this (the extra "
        "clean); null keeps them.",
    )
    map: str | None = setting(
        None,
        "FILE.py:FUNCTION of one's own, which makes of a document's text another one, or None to "
        "drop it; before filter and lengths. In a recipe relative to the folder of its "
        "pipelines.yaml; only a file that this names is ever run.",
        pattern=FUNCTION,
    )
    filter: str | None = setting(
        None,
        "FILE.py:FUNCTION of one's own, which returns whether a document is kept, by its text; as "
        "map. Either takes (text), or (text, columns): a dict of data.columns.",
        pattern=FUNCTION,
    )

    @property
    def changes_text(self) -> bool:
        """Whether documents may be encoded otherwise than they came."""
        return self.fix_text or self.map is not None


class TextConfig(Section):
    """Where documents come from, and how they are read, cleaned and held out."""

    source: Literal["stories", "hub", "files"] = setting(
        "stories",
        "Where documents come from: the embedded story generator, the Hugging Face hub, or local "
        "files.",
    )
    path: str = setting(
        "",
        "Dataset id on the hub; a file, a folder or a glob of files, in a recipe relative to the "
        "folder of its pipelines.yaml; or an address such as s3://BUCKET/FOLDER.",
    )
    config_name: str | None = setting(None, "Configuration (subset) of a hub dataset.")
    revision: str | None = setting(None, "Branch, tag or commit on the hub; resolved to a commit.")
    train_split: str | None = setting(
        "train",
        "Name of the dataset's training split, taken exactly; the default also matches what has "
        "a name like it, or no split's name. null: everything that is not val_split.",
        min_length=1,
    )
    val_split: str | None = setting(
        "validation",
        "Name of its validation split, taken exactly; the default also matches names like it "
        "(valid, val, dev), where the dataset has any. null: none.",
        min_length=1,
    )
    text_column: str = setting(
        "text", "Column that contains the text, or a path into one, such as messages[].content."
    )
    template: str | None = setting(
        None, "Join several columns into the text, such as {title}\\n\\n{body}."
    )
    columns: tuple[str, ...] = setting(
        (),
        "Columns that are kept next to the text, such as [lang, score]: for clean.filter and "
        "clean.map, and to be seen.",
    )
    format: Literal["parquet", "arrow", "jsonl", "csv", "tsv", "text"] | None = setting(
        None, "Format of every file, whatever its name; null: by its name."
    )
    separator: str | None = setting(
        None,
        "Split a text file into documents at this text, such as \\n\\n; null: one document per "
        "file.",
        min_length=1,
    )
    documents: PositiveInt | None = setting(
        None, "Maximum number of training documents; of stories, how many to generate."
    )
    seed: Seed = setting(1337, "Random seed of the generated stories.")

    clean: CleanConfig = Field(CleanConfig(), description=CleanConfig.__doc__)
    val_fraction: Fraction = setting(
        0.01,
        "Fraction of the documents held out, chosen by document hash, where the dataset has no "
        "validation split; of a small dataset at least ten documents or a tenth.",
    )

    @field_validator("columns")
    @classmethod
    def _columns_are_distinct(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        if twice := [name for i, name in enumerate(columns) if name in columns[:i]]:
            raise ValueError(f"data.columns names {excerpt(repr(twice[0]))} twice")
        if "" in columns:
            raise ValueError("data.columns has an empty name")
        return columns

    @field_validator("separator")
    @classmethod
    def _as_newlines_are_read(cls, separator: str | None) -> str | None:
        return separator and separator.replace("\r\n", "\n").replace("\r", "\n")

    @model_validator(mode="after")
    def _path_is_given(self) -> Self:
        if self.source != "stories" and not self.path:
            remedy = {
                "hub": "a dataset id such as roneneldan/TinyStories",
                "files": "a file or folder",
            }
            raise ValueError(f"data.path is empty: give {remedy[self.source]} (--set data.path=…)")
        if self.source == "stories" and self.columns:
            raise ValueError(
                f"data.columns names {listing(self.columns)}, and generated stories have no "
                "columns but their text: leave it out"
            )
        return self


class SourceConfig(TextConfig):
    """One source of a mixture: its documents, and how much of the training is theirs."""

    weight: PositiveFloat = setting(
        1.0, "Share of the training's rows, relative to the weights of the other sources."
    )
    max_epochs: PositiveFloat | None = setting(
        None,
        "Passes over its training tokens after which it leaves, and its share goes to the others; "
        "null: any number.",
    )
    license: str | None = setting(None, "License of its documents, for the data card.")
