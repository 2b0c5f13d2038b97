"""Replies that were paid for, by what was asked, in a file that only grows."""

import threading
from pathlib import Path

from truing.data.problems import BadValueError
from truing.data.strict_json import parse_row
from truing.endpoint.asking import Reply
from truing.runs.canonical import to_json_line
from truing.runs.durable import AppendLog, make_folder


class Replies:
    """Replies by what was asked, in a file that only grows; each is on the disk before it is used. Without a path, in memory."""

    def __init__(self, path: Path | None = None) -> None:
        self._found: dict[str, Reply] = {}
        self._lock = threading.Lock()
        self._log: AppendLog | None = None
        if path is None:
            return
        make_folder(path.parent)
        self._log = AppendLog(path)
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                row = parse_row(line)
                key = str(row.pop("key"))
                self._found[key] = Reply(**row)  # type: ignore[arg-type]
                if not isinstance(row.get("text"), str) or row.get("stop") not in ("end", "length"):
                    raise BadValueError("no text, or no ending")
            except (BadValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number}: is no kept reply ({error}); restore the file, or remove the line") from None

    def get(self, key: str) -> Reply | None:
        """The reply to what has this key, if it came before."""
        return self._found.get(key)

    def put(self, key: str, reply: Reply) -> None:
        """Returns once the reply outlives a power cut."""
        with self._lock:
            if self._log is not None:
                fields = {name: getattr(reply, name) for name in Reply.__dataclass_fields__}
                self._log.append(to_json_line({"key": key, **fields}))
                self._log.sync()
            self._found[key] = reply

    def close(self) -> None:
        """Closes the file."""
        if self._log is not None:
            self._log.close()
