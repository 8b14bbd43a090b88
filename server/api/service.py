"""What every endpoint is given: engine, models, limits, time and randomness. Built once by `app`; it knows no HTTP."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from server.api.chat_template import ChatTemplate
from server.api.engine_port import Engine
from server.api.json_guard import shown
from server.api.recent import RecentAnswers
from server.api.served_model import ServedModel
from server.api.settings import ApiSettings
from server.engine.types import EngineInfo
from server.errors import BadRequest, EngineUnavailable


@dataclass(frozen=True)
class Service:
    engine: Engine
    models: Mapping[str, ServedModel]
    templates: Mapping[str, ChatTemplate]  # by the same names
    settings: ApiSettings
    version: str
    clock: Callable[[], float]  # seconds since 1970
    random_bits: Callable[[], int]  # 64 of them
    recent: RecentAnswers = field(default_factory=RecentAnswers)
    _fingerprints: dict[str, tuple[EngineInfo, str]] = field(default_factory=dict)  # by model, and of which engine

    def find_model(self, name: str | None) -> ServedModel:
        """The model served under `name`, or the first for None. Raises BadRequest (404) for a name not served."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            served = ", ".join(self.models)
            message = f"The model {shown(name)} does not exist; this server has: {served}."
            raise BadRequest(message, "model", "model_not_found", 404)
        return self.models[name]

    def engine_info(self, model: ServedModel) -> EngineInfo:
        """Raises EngineUnavailable while the model has never been loaded."""
        info = self.engine.models().get(model.name)
        if info is None:
            raise EngineUnavailable(f"The model {model.name} is still being loaded.")
        return info

    def system_fingerprint(self, model: ServedModel) -> str:
        """Differs where answers may: by checkpoint and torch (info.fingerprint), number formats, device and version."""
        info = self.engine_info(model)
        known = self._fingerprints.get(model.name)
        if known is None or known[0] is not info:
            known = self._fingerprints[model.name] = (info, self._fingerprint(model, info))
        return known[1]

    def _fingerprint(self, model: ServedModel, info: EngineInfo) -> str:
        formats = f"{info.dtype}|{info.quantize}|{info.kv_cache}"
        identity = f"{model.name}|{info.fingerprint}|{formats}|{info.device}|{info.backend}|{self.version}"
        return "fp_" + hashlib.sha256(identity.encode()).hexdigest()[:16]

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-{self.random_bits():016x}{self.random_bits():016x}"
