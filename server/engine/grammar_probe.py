"""The engine's end of the process that tries grammars out: started with the first grammar, again when it died."""

import json
import select
import signal
import subprocess
import sys
from dataclasses import dataclass, field

from server.engine.grammar_spec import CompilerError, Grammar, GrammarError

# The process limits its own computing; this only bounds the wait on a machine too busy to let it compute.
_WAIT_SECONDS = 20.0


@dataclass
class GrammarProbe:
    """Not thread-safe: one grammar at a time."""

    num_started: int = 0
    _process: "subprocess.Popen[str] | None" = field(default=None, repr=False)

    def to_source(self, grammar: Grammar) -> str:
        """`grammar` in llguidance's notation, after it compiled within the limits.

        Raises GrammarError, and CompilerError when the machine has no room for a process.
        """
        try:
            process = self._running()
        except OSError as error:
            raise CompilerError("The grammar cannot be compiled now: the machine has no room.") from error
        assert process.stdin is not None
        assert process.stdout is not None
        line = ""
        try:
            process.stdin.write(json.dumps({"kind": grammar.kind, "text": grammar.text}) + "\n")
            process.stdin.flush()
            if select.select([process.stdout], [], [], _WAIT_SECONDS)[0]:
                line = process.stdout.readline()
        except BrokenPipeError:
            pass  # it died since the last grammar, or of this one's text
        if not line.endswith("\n"):
            raise GrammarError(self._cause_of_death())
        answer: dict[str, str] = json.loads(line)
        if "error" in answer:
            raise GrammarError(answer["error"])
        return answer["source"]

    def close(self) -> None:
        """End the process. It may be used again, and then starts anew."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _running(self) -> "subprocess.Popen[str]":
        if self._process is None or self._process.poll() is not None:
            self.close()
            self.num_started += 1
            self._process = subprocess.Popen(
                [sys.executable, "-m", "server.engine.grammar_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        return self._process

    def _cause_of_death(self) -> str:
        assert self._process is not None
        try:
            status = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            status = -signal.SIGPROF
        self.close()
        if status == -signal.SIGPROF:
            return "takes too long to compile; the limit is 0.5 seconds of computing"
        return "is nested too deeply or too large to compile"
