"""What launchers call a rank, as PyTorch calls it."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolo_xpu_trainer.errors import UsageError
from yolo_xpu_trainer.launchers import apply_to

SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08,12]",
    "SLURM_JOB_ID": "1234567",
}
PALS = {
    "PALS_RANKID": "13",
    "PALS_LOCAL_RANKID": "1",
    "PALS_LOCAL_SIZE": "12",
    "PALS_NODEID": "1",
    "PMI_RANK": "13",
    "PMI_SIZE": "24",
}
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "3", "MPI_LOCALNRANKS": "4"}


def test_slurms_step_is_read() -> None:
    environment = dict(SLURM)
    assert apply_to(environment) == "SLURM"
    assert environment["RANK"] == "5"
    assert environment["LOCAL_RANK"] == "1"
    assert environment["WORLD_SIZE"] == "7"
    assert environment["LOCAL_WORLD_SIZE"] == "3"
    assert environment["GROUP_RANK"] == "1"
    assert environment["MASTER_ADDR"] == "gpu07"
    assert 20000 <= int(environment["MASTER_PORT"]) < 30000


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu3", "gpu3"),
        ("gpu3,gpu4", "gpu3"),
        ("r1-[3-4]-ib", "r1-3-ib"),
        ("a[1,5],b2", "a1"),
        ("a.b.c[1-2]", "a.b.c1"),
        ("rack[1-2]n[03-04]", "rack1n03"),
        ("rack[1,3]n[03,05]-ib,b2", "rack1n03-ib"),
    ],
)
def test_rank_0_is_on_the_first_node_of_slurms_list(nodes: str, first: str) -> None:
    environment = {**SLURM, "SLURM_STEP_NODELIST": nodes}
    apply_to(environment)
    assert environment["MASTER_ADDR"] == first


def test_pals_is_read_with_the_first_machine_of_pbs(tmp_path: Path) -> None:
    nodes = tmp_path / "nodes"
    nodes.write_text("x4102\nx4103\n")
    environment = {**PALS, "PBS_NODEFILE": str(nodes), "PBS_JOBID": "812.aurora"}
    assert apply_to(environment) == "PALS"
    assert environment["RANK"] == "13"
    assert environment["LOCAL_RANK"] == "1"
    assert environment["WORLD_SIZE"] == "24"
    assert environment["LOCAL_WORLD_SIZE"] == "12"
    assert environment["MASTER_ADDR"] == "x4102"


def test_intel_mpi_on_one_machine_needs_no_address() -> None:
    environment = dict(HYDRA)
    assert apply_to(environment) == "MPI"
    assert environment["LOCAL_RANK"] == "3"
    assert environment["MASTER_ADDR"] == "127.0.0.1"


def test_a_local_rank_that_mpi_does_not_say_may_be_given() -> None:
    environment = {"PMI_RANK": "1", "PMI_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}
    assert apply_to(environment) == "MPI"
    assert environment["LOCAL_RANK"] == "1"


def test_srun_that_speaks_pmi_is_slurms() -> None:
    environment = {**SLURM, "PMI_RANK": "5", "PMI_SIZE": "7"}
    assert apply_to(environment) == "SLURM"
    assert environment["LOCAL_RANK"] == "1"
    assert environment["MASTER_ADDR"] == "gpu07"


def test_two_steps_of_a_job_have_a_port_each() -> None:
    ports = set()
    for step in "012":
        environment = {**SLURM, "SLURM_STEP_ID": step}
        apply_to(environment)
        ports.add(environment["MASTER_PORT"])
    assert len(ports) == 3


def test_an_address_that_is_given_stays() -> None:
    environment = {**SLURM, "MASTER_ADDR": "ib0", "MASTER_PORT": "1234"}
    apply_to(environment)
    assert environment["MASTER_ADDR"] == "ib0"
    assert environment["MASTER_PORT"] == "1234"


def test_torchrun_in_a_step_of_slurm_is_obeyed() -> None:
    torchrun = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    environment = {**SLURM, **torchrun}
    assert apply_to(environment) == "torchrun"
    assert environment == {**SLURM, **torchrun}


def test_a_job_that_slurm_has_started_again_is_told_apart_from_its_first_start() -> None:
    environment = {**SLURM, "SLURM_RESTART_COUNT": "2"}
    apply_to(environment)
    assert environment["TORCHELASTIC_RUN_ID"] == "1234567"
    assert environment["TORCHELASTIC_RESTART_COUNT"] == "2"
    torchrun = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "1"}
    environment = {"SLURM_RESTART_COUNT": "2", **torchrun}
    apply_to(environment)
    assert environment["TORCHELASTIC_RESTART_COUNT"] == "3"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**SLURM, "SLURM_STEP_NUM_TASKS": "1"},  # `srun --pty bash`
        {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"},  # a batch script, outside of a step
        {"PMI_RANK": "0", "PMI_SIZE": "1", "MPI_LOCALRANKID": "0"},
        {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "0"},
    ],
)
def test_a_process_that_is_alone_is_not_distributed(environment: dict[str, str]) -> None:
    assert apply_to(environment) is None
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK"} & set(environment)


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "Set LOCAL_RANK"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "LOCAL_RANK isn't"),
        ({**PALS, "PALS_LOCAL_SIZE": "12"}, "Set MASTER_ADDR"),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS='many'"),
    ],
)
def test_what_a_launcher_does_not_say_is_asked_for(environment: dict[str, str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        apply_to(environment)
