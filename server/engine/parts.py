"""What a core may be given besides its model: who guesses ahead, who compiles grammars, who chooses tokens, and
how often a step passes through the model."""

from dataclasses import dataclass, field

from server.engine.grammar_queue import StartGrammar, no_grammars
from server.engine.multi_step import MultiStep
from server.engine.speculation import NoSpeculation, Speculator
from server.engine.verify import Choose, choose_by_torch


@dataclass(frozen=True)
class Parts:
    """The exchangeable parts of an EngineCore. By default it guesses nothing, refuses grammars, chooses by torch
    and passes once a step."""

    speculator: Speculator = field(default_factory=NoSpeculation)
    start_grammar: StartGrammar = no_grammars
    choose: Choose = choose_by_torch
    multi_step: MultiStep | None = None


ALONE = Parts()
"""For a core that is given a model and nothing else. It is shared: none of these has a state."""
