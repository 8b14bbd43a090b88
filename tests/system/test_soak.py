"""A minute of heavy traffic with clients that vanish: nothing fails, nothing leaks, the books balance."""

import json
from pathlib import Path

import httpx
import pytest
from test_whole_system import metric

from loadtest.__main__ import main as loadtest

SECONDS = 60
STREAMS = 64


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sixty_four_streams_for_a_minute_with_disconnects(server_url: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    load = ["--concurrency", str(STREAMS), "--duration-seconds", str(SECONDS), "--disconnect-fraction", "0.1"]
    work = [
        "--model",
        "gqa",
        "--prompt-length",
        "uniform:4:40",
        "--output-length",
        "uniform:1:80",
        "--temperature",
        "1",
    ]
    assert loadtest(["--url", server_url, *load, *work, "--json", str(report)]) == 0
    totals = json.loads(report.read_text())["runs"][0]["summary"]["totals"]
    assert totals["errors"] == 0
    assert totals["disconnected"] > 0
    with httpx.Client(base_url=server_url, timeout=60) as client:
        client.post("/v1/completions", json={"model": "gqa", "prompt": "x", "max_tokens": 1}).raise_for_status()
        started = metric(client, "minigpt_requests_started_total", model="gqa")
        assert started == metric(client, "minigpt_requests_finished_total", model="gqa") >= totals["sent"]
        assert metric(client, "minigpt_requests_in_flight", model="gqa") == 0
        assert metric(client, "minigpt_kv_blocks", model="gqa", state="used") == 0
