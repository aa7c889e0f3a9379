"""What another launcher left behind changes nothing: it is refused before any work."""

from __future__ import annotations

import pytest
import torch

from studylib.core.errors import StudyError
from studylib.core.launch import LAUNCHED, local_rank, processes, refuse_left_over, sharded
from studylib.modelling.models import default_device, load_model
from studylib.schema.profile import MethodSettings, ModelRef
from studylib.training.distributed import worker_environment

LEFT = [
    {"WORLD_SIZE": "2"},
    {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"},
    {"LOCAL_RANK": "1"},
    {"OMPI_COMM_WORLD_SIZE": "4"},
    {"ACCELERATE_USE_FSDP": "true"},
]


@pytest.mark.parametrize("left", LEFT, ids=lambda left: ",".join(left))
def test_another_launchers_variables_are_refused_by_name(left):
    with pytest.raises(StudyError) as caught:
        refuse_left_over(left)
    named = [name for name in left if left[name] != "1" or name != "WORLD_SIZE"]
    assert all(f"{name}={left[name]}" in str(caught.value) for name in named)
    assert f"unset {' '.join(sorted(named, key=str(caught.value).index))}" in str(caught.value)
    assert (processes(left), local_rank(left), sharded(left)) == (1, None, False)


@pytest.mark.parametrize("environ", [{}, {"WORLD_SIZE": "1"}, {"SLURM_PROCID": "3"}])
def test_an_ordinary_shell_is_not_refused(environ):
    refuse_left_over(environ)
    assert processes(environ) == 1


def test_processes_of_the_own_launcher_know_their_number():
    own = {LAUNCHED: "1", "WORLD_SIZE": "4", "LOCAL_RANK": "2", "ACCELERATE_USE_FSDP": "true"}
    refuse_left_over(own)
    assert (processes(own), local_rank(own), sharded(own)) == (4, 2, True)
    assert LAUNCHED in worker_environment()


def test_no_model_is_loaded_under_anothers_variables(tiny_folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(StudyError, match="WORLD_SIZE=2"):
        load_model(ModelRef.parse(f"path:{tiny_folder}"), MethodSettings(name="base"), "fp32")


def test_a_left_over_rank_is_not_taken_for_a_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert default_device() == torch.device("cuda")
    monkeypatch.setenv(LAUNCHED, "1")
    assert default_device() == torch.device("cuda", 3)
