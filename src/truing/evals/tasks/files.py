"""Where the data of tasks come from: files under one folder, or the hub; each is hashed as it is read.

A row that cannot be used stops the evaluation with file and row: nothing is averaged over what is left.
"""

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truing.data.problems import BadRow, DataError
from truing.data.rows import rows

MAX_MEMBER_BYTES = 64 << 20
"""The largest file that is read out of an archive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One row of a data file with its place. Example: `Item(cells={"question": "..."}, place="gsm8k/test.jsonl:3")`."""

    cells: Mapping[str, Any]
    place: str
    """File and row, for errors."""

    def text(self, column: str) -> str:
        """A column that must hold text."""
        value = self.cells.get(column)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{self.place}: {self._wrong(column)}, and text is needed")
        return value

    def whole(self, column: str) -> int:
        """A column that must hold a whole number, if need be written as text."""
        value = self.cells.get(column)
        if isinstance(value, str) and value.strip().lstrip("-").isdigit():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise DataError(f"{self.place}: {self._wrong(column)}, and a whole number is needed")
        return value

    def mapping(self, column: str) -> Mapping[str, Any]:
        """A column that must hold an object."""
        value = self.cells.get(column)
        if not isinstance(value, dict):
            raise DataError(f"{self.place}: {self._wrong(column)}, and an object is needed")
        return value

    def array(self, column: str) -> list[Any]:
        """A column that must hold a list with something in it."""
        value = self.cells.get(column)
        if not isinstance(value, list) or not value:
            raise DataError(f"{self.place}: {self._wrong(column)}, and a list is needed")
        return value

    def one_of(self, column: str, allowed: tuple[str, ...]) -> str:
        """A column that must hold one of these texts."""
        value = self.cells.get(column)
        if value not in allowed:
            raise DataError(f"{self.place}: {self._wrong(column)}; it must be one of {', '.join(allowed)}")
        return str(value)

    def _wrong(self, column: str) -> str:
        if column not in self.cells:
            return f'the column "{column}" is missing'
        return f'"{column}" is {str(self.cells[column])[:80]!r}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """A data set of the hub, read where no file is found. Example: `Hub(name="cais/mmlu", config="all", split="test")`."""

    name: str
    split: str
    config: str | None = None

    def __str__(self) -> str:
        return ":".join(part for part in (self.name, self.config, self.split) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The folder that holds the data sets, and what has been read of them. Example: `Files(root=Path("data"))`."""

    root: Path
    hub: bool = True
    """Whether a data set that is not in the folder is asked of the hub."""
    sha256: dict[str, str] = field(default_factory=dict)
    """File or data set -> SHA-256 of the bytes that were read; filled as tasks read."""

    def find(self, *names: str) -> Path | None:
        """The first of these that is there, relative to the folder."""
        return next((self.root / name for name in names if (self.root / name).is_file()), None)

    def items(self, *names: str, hub: Hub | None = None) -> list[Item]:
        """All rows of the first of these files that is there, else of the hub's data set."""
        path = self.find(*names)
        if path is None:
            return self._from_hub(names, hub)
        place = str(path.relative_to(self.root))
        found: list[Item] = []
        for row in rows(path, str(path)):
            if isinstance(row, BadRow):
                raise DataError(f"{row}; correct the row or fetch the file again")
            found.append(Item(cells=row.cells, place=f"{path}:{row.number}"))
        if not found:
            raise DataError(f"{path}: the file holds no rows")
        self._note(place, path.read_bytes())
        return found

    def group(self, folder: str, pattern: str) -> list[Path]:
        """The files of a folder that match, by name."""
        return sorted((self.root / folder).glob(pattern))

    def tables(self, archive: str, folder: str, suffix: str, columns: tuple[str, ...]) -> dict[str, list[Item]]:
        """CSV tables without a header, out of a zip archive or a folder beside it, by name less the suffix.

        Every row must have exactly these columns.
        """
        return {name: _table(text, place, columns) for name, place, text in sorted(self._members(archive, folder, suffix), key=str)}

    def _members(self, archive: str, folder: str, suffix: str) -> Iterator[tuple[str, str, str]]:
        path = self.find(archive)
        if path is not None:
            self._note(archive, path.read_bytes())
            try:
                with zipfile.ZipFile(path) as opened:
                    for info in opened.infolist():
                        parent, _, file = info.filename.rpartition("/")
                        if parent.endswith(folder) and file.endswith(suffix) and not file.startswith("."):
                            if info.file_size > MAX_MEMBER_BYTES:
                                raise DataError(f"{path}: {info.filename} would unpack to {info.file_size:,} bytes; not read")
                            place = f"{path}!{info.filename}"
                            yield file.removesuffix(suffix), place, _decoded(opened.read(info), place)
            except zipfile.BadZipFile as error:
                raise DataError(f"{path}: the archive is damaged ({error}); fetch it again") from None
            return
        for file_path in self.group(str(Path(archive).parent / folder), f"*{suffix}"):
            data = file_path.read_bytes()
            self._note(str(file_path.relative_to(self.root)), data)
            yield file_path.name.removesuffix(suffix), str(file_path), _decoded(data, str(file_path))

    def _from_hub(self, names: tuple[str, ...], hub: Hub | None) -> list[Item]:
        missing = f"{self.root}: none of {', '.join(names)} is there; set data=FOLDER to where it lies"
        if hub is None or not self.hub:
            raise DataError(missing)
        try:
            import datasets
        except ImportError:
            raise DataError(f"{missing}; to read {hub} from the hub, pip install 'truing[hub]'") from None
        try:
            loaded = list(datasets.load_dataset(hub.name, hub.config, split=hub.split))
        except (OSError, ValueError) as error:
            raise DataError(f"{missing}; and the hub gave no {hub}: {str(error)[:200]}") from error
        self._note(str(hub), json.dumps(loaded, sort_keys=True, default=str).encode())
        return [Item(cells=cells, place=f"{hub}:{number}") for number, cells in enumerate(loaded, 1)]

    def _note(self, name: str, data: bytes) -> None:
        self.sha256[name] = hashlib.sha256(data).hexdigest()


def _decoded(data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 at byte {error.start}; fetch the file again") from None


def _table(text: str, place: str, columns: tuple[str, ...]) -> list[Item]:
    found: list[Item] = []
    try:
        for number, cells in enumerate(csv.reader(io.StringIO(text, newline=""), strict=True), 1):
            if len(cells) != len(columns):
                raise DataError(f"{place}:{number}: {len(cells)} columns, and {len(columns)} are needed ({', '.join(columns)})")
            found.append(Item(cells=dict(zip(columns, cells, strict=True)), place=f"{place}:{number}"))
    except csv.Error as error:
        raise DataError(f"{place}: broken CSV after row {len(found)}: {error}") from None
    if not found:
        raise DataError(f"{place}: the file holds no rows")
    return found
