"""The doctor says what the machine has, and why it lacks what it lacks."""

from __future__ import annotations

import json

import pytest

from studylib.running import doctor
from studylib.schema.profile import shipped_profiles


@pytest.fixture(scope="module")
def findings():
    return doctor.examine_machine()


def test_findings_are_json_and_each_lack_has_its_reason(findings):
    read = json.loads(json.dumps(findings))
    for name in ("hub", "four_bit", "profile"):
        assert read[f"{name}_reason"]
    assert read["gpus"] or read["gpus_reason"]
    assert read["host"]["memory_total_bytes"] > read["host"]["memory_available_bytes"] > 0
    assert read["disk_free_bytes"] > 0
    assert read["profile"] in shipped_profiles()


def test_findings_fit_one_screen(findings):
    lines = doctor.format_findings(findings).splitlines()
    assert len(lines) <= 24
    assert [line.split()[0] for line in lines][-4:] == ["disk", "hub", "4-bit", "profile"]


def test_four_bit_is_tried_and_not_taken_on_trust(monkeypatch):
    import bitsandbytes.functional as bnb

    works, reason = doctor.try_four_bit()
    assert works and "NF4" in reason and "96" in reason
    right = bnb.dequantize_4bit

    def wrong_constants(packed, state):
        """As a kernel that counts whole blocks a row: right only where rows end with blocks."""
        read = right(packed, state)
        return read if state.shape[-1] % 64 == 0 else read.flatten().roll(16).reshape(read.shape)

    monkeypatch.setattr(bnb, "dequantize_4bit", wrong_constants)
    works, reason = doctor.try_four_bit()
    assert not works and "wrong values here" in reason and "at width 64" not in reason

    def fail(*_, **__):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(bnb, "quantize_4bit", fail)
    assert doctor.try_four_bit() == (False, "bitsandbytes does not work here: no such kernel")


@pytest.mark.parametrize("endpoint", ["nonsense", "http://[", "http://127.0.0.1:9", "http://a b"])
def test_hub_that_does_not_answer_is_a_finding_and_no_fault(monkeypatch, endpoint):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    reached, reason = doctor.reach_hub()
    assert not reached and reason.startswith(f"{endpoint} does not answer")


def test_offline_switch_is_the_reason_when_it_is_set(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert doctor.reach_hub() == (False, "HF_HUB_OFFLINE=1 is set")


def test_hub_that_answers_is_reached_whatever_it_says(monkeypatch):
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Refuse(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(403)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        assert doctor.reach_hub() == (True, endpoint)
