"""Rendering chat templates, which are code from strangers: in transformers' sandbox, with limits on time and memory.

Each template is first tried in a child process under limits of CPU time and memory; after that every rendering in the main
thread has a limit on time. A template that misbehaves only on certain contents is stopped by the clock alone, not by memory.
What the rendered text means is `truing.data.chat.tokenizer`.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, runtime_checkable

import jinja2

CPU_SECONDS = 1
RENDER_SECONDS = 5.0
BUSY_SECONDS = 300
MEBIBYTES = 256
CHARACTERS = 1_000_000
TOO_MUCH = 3

PLAIN = (
    "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if add_generation_prompt or not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}"
)
"""For models without a template: contents and response are paragraphs, set apart by a blank line."""

CONTINUE = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
"""For models that go on writing: the response follows the prompt with nothing between them."""

Turn = dict[str, str]


class TemplateError(ValueError):
    """A chat template that failed, whose it is, and what to do."""


@runtime_checkable
class Renders(Protocol):
    """The part of a tokenizer that rendering needs."""

    name_or_path: str

    @property
    def apply_chat_template(self) -> Callable[..., object]:
        """The method of that name, as transformers has it."""
        ...


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after so many seconds; does nothing outside the main thread, where signals do not arrive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, remaining, interval)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A chat template and the tokenizer it belongs to. Example: `Template(tokenizer=t, source=t.get_chat_template())`."""

    tokenizer: Renders
    source: str
    variables: Mapping[str, str | bool] = field(default_factory=dict)
    """Further names that the template may read, such as `date_string` or `enable_thinking`."""

    def render(self, turns: Sequence[Turn], *, ask: bool) -> str:
        """The conversation as text; with `ask`, up to where the assistant starts to speak."""
        try:
            with time_limit(RENDER_SECONDS):
                text = self.tokenizer.apply_chat_template(
                    list(turns), chat_template=self.source, tokenize=False, add_generation_prompt=ask, **self.variables
                )
        except TimeoutError:
            raise self._failure(f"ran for more than {RENDER_SECONDS:g} seconds") from None
        except (
            jinja2.TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise self._failure(f"failed: {str(error) or type(error).__name__}") from error
        assert isinstance(text, str)
        return text

    def probe(self, conversations: Sequence[Sequence[Turn]]) -> None:
        """Render in a child under limits; raise TemplateError when it overruns them. Other failures are left to `render`."""
        tokens = getattr(self.tokenizer, "special_tokens_map", {})
        work = {"source": self.source, "names": {**tokens, **self.variables}, "conversations": [list(c) for c in conversations]}
        if not _within_limits(json.dumps(work)):
            raise self._failure(
                f"needs more than {CPU_SECONDS} seconds, {MEBIBYTES} MiB or {CHARACTERS:,} characters for two words of conversation"
            )

    def _failure(self, what: str) -> TemplateError:
        return TemplateError(
            f"the chat template of {self.tokenizer.name_or_path or 'the tokenizer'} {what}; "
            "correct chat_template in the model folder, the roles of the messages, or choose template=plain"
        )


@lru_cache(maxsize=64)
def _within_limits(work: str) -> bool:
    command = [sys.executable, "-P", __file__]
    try:
        done = subprocess.run(command, input=work, text=True, capture_output=True, timeout=BUSY_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        # the child's own limit is on the time that it was given, so this is not the template's doing
        busy = f"the chat template was not tried within {BUSY_SECONDS} seconds: the machine is too busy; try again"
        raise ValueError(busy) from None
    assert done.stdout.startswith("rendering"), f"the child never came to the template: {done.stderr}"
    return done.returncode >= 0 and done.returncode != TOO_MUCH


def _render_under_limits() -> None:
    """The child's side: limits count from after the imports, which are not the template's doing."""
    import resource  # POSIX only, and needed in the child only

    from transformers.utils.chat_template_utils import render_jinja_template

    work = json.loads(sys.stdin.read())
    print("rendering", flush=True)
    spent = resource.getrusage(resource.RUSAGE_SELF)
    cpu = int(spent.ru_utime + spent.ru_stime) + CPU_SECONDS + 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEBIBYTES * 2**20,) * 2)
    try:
        texts = render_jinja_template(
            conversations=work["conversations"], chat_template=work["source"], add_generation_prompt=True, **work["names"]
        )[0]
    except MemoryError:
        sys.exit(TOO_MUCH)
    sys.exit(TOO_MUCH if any(len(text) > CHARACTERS for text in texts) else 0)


if __name__ == "__main__":
    _render_under_limits()
