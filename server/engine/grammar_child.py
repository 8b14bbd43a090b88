"""The process that tries grammars out, so that one which hangs or crashes the compiler takes down nobody else.

Reads one JSON object per line, {"kind", "text"}, and answers each with a line, {"source"} or {"error"}. A grammar that
takes too much is not answered: the kernel ends this process, and its owner starts another.
"""

import json
import os
import resource
import signal
import sys
import threading

from llguidance import LLMatcher, LLTokenizer

from server.engine.grammar_source import parser_limits, reason, to_source
from server.engine.grammar_spec import Grammar, GrammarError

CPU_SECONDS = 0.5
# An eighth of a thread's usual stack: what compiles here leaves the engine's threads seven eighths to spare.
_STACK_BYTES = 2**20
_MEMORY_BYTES = 2**30


def main() -> None:
    """Answer until standard input ends."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_serve)
    thread.start()
    thread.join()


def _serve() -> None:
    tokenizer = LLTokenizer("byte")
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        answer = _try(tokenizer, Grammar(request["kind"], request["text"]))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


def _try(tokenizer: LLTokenizer, grammar: Grammar) -> dict[str, str]:
    try:
        source = to_source(grammar)
    except GrammarError as error:
        return {"error": str(error)}
    matcher = LLMatcher(tokenizer, source, log_level=0, limits=parser_limits())
    if not matcher.is_error():
        matcher.compute_bitmask()
    return {"error": reason(matcher.get_error())} if matcher.is_error() else {"source": source}


if __name__ == "__main__":
    main()
