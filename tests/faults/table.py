"""The kinds of faults: how each is injected, what the study promises then, which test tries it.

`make faults` runs these tests and writes what was seen into docs/faults.md.
"""

from __future__ import annotations

from typing import NamedTuple

RUNS, STUDIES, FILES = (f"tests/faults/test_{name}.py" for name in ("struck_runs", "struck_studies",
                                                                    "struck_files"))  # fmt: skip
KILLED = f"{RUNS}::test_run_that_is_killed_goes_on_and_ends_as_an_undisturbed_one"
SAME = "the run goes on, and its record is an undisturbed one's in every loss, answer and weight"
NAMED = "one message names the file and the remedy, exit 2"
ONE_MESSAGE = "one message, exit 2; what came whole stays"


class Fault(NamedTuple):
    """One kind. tests: pytest's names of those that hold the promise."""

    kind: str
    how: str
    promise: str
    tests: tuple[str, ...]


FAULTS = (
    Fault("SIGKILL while loading", "as progress.json says `loading`", SAME, (f"{KILLED}[load]",)),
    Fault("SIGKILL in training", "at the last file of a checkpoint, which is half written",
          f"{SAME}, from the checkpoint before", (f"{KILLED}[train]",)),
    Fault("SIGKILL as weights are kept", "before the mark that they are whole", SAME,
          (f"{KILLED}[keep]",)),
    Fault("SIGKILL in evaluation", "as progress.json says `evaluating`", f"{SAME}; it does not "
          "train again", (f"{KILLED}[evaluate]",)),
    Fault("SIGKILL while serving", "as progress.json says `serving`", f"{SAME}; it does not train "
          "again", (f"{KILLED}[serve]",)),
    Fault("SIGKILL as the record is written", "as its temporary file is opened", f"no half a "
          f"record; {SAME}", (f"{KILLED}[write]",)),
    Fault("Ctrl-C, SIGTERM and SIGKILL of a study", "to `study reproduce`, one after the other",
          "exit 130, 143 and −9, no process left; the same command ends it, finished records stay",
          (f"{STUDIES}::test_study_that_is_stopped_three_ways_ends_at_the_fourth_call",)),
    Fault("kills at random moments", "SIGKILL of any process of a study: kernels, runs, what they "
          "are forked from, the study", "nothing that was finished is done again, every record is "
          "an undisturbed study's", (f"{STUDIES}::test_kills_at_random_moments_lose_nothing",)),
    Fault("two studies in one folder", "a second call while the first one runs",
          "one message, exit 2; the first goes on",
          (f"{STUDIES}::test_study_that_is_stopped_three_ways_ends_at_the_fourth_call",)),
    Fault("a kernel that dies", "SIGKILL of a notebook's process, of its run's, SIGTERM of a run",
          "each ends its own run alone; no process is left",
          ("tests/test_warm.py::test_killed_kernel_killed_run_and_ended_run_harm_no_other",)),
    Fault("a kernel that hangs", "SIGSTOP of a notebook's process; hardware.hang_minutes is 0.05",
          "it is ended with a message, exit 1; the run goes on at the next call",
          (f"{RUNS}::test_kernel_that_stands_still_is_ended_with_a_message",)),
    Fault("no memory on the host", "RLIMIT_AS: 300 MB more than the kernel has", "a record that "
          "says so", (f"{RUNS}::test_run_without_memory_is_a_record_that_says_so",)),
    Fault("no memory on a card", "torch's OutOfMemoryError and CUDA's other words, raised in "
          "training (no card here)", "a record that says so",
          ("tests/test_run.py::test_running_out_of_memory_is_a_result",
           "tests/test_run.py::test_no_room_outside_of_the_cards_allocator_is_a_result")),
    Fault("a full disk", "a tmpfs of 24 kB, 160 kB, 480 kB, 800 kB for the results: full at the "
          "notebook, at a checkpoint, at weights, at tables", "one message, no record; with room "
          "the run goes on and is an undisturbed one",
          (f"{RUNS}::test_full_disk_is_one_message_and_with_room_the_run_ends",)),
    Fault("results that are gone in mid-run", "their folder is renamed while the run evaluates",
          "the run fails; with the folder back it goes on",
          (f"{RUNS}::test_results_that_are_gone_in_mid_run_fail_it_and_come_back",)),
    Fault("results that are read-only", "a tmpfs mounted so", "one message before any work, exit 2",
          (f"{FILES}::test_results_that_are_read_only_are_one_message_before_any_work",)),
    Fault("a cache that is read-only", "a tmpfs mounted so, for STUDY_CACHE", NAMED,
          (f"{FILES}::test_cache_that_is_read_only_is_one_message",)),
    Fault("a record that is cut short", "its file is truncated", NAMED,
          ("tests/test_records.py::test_truncated_record_is_named",)),
    Fault("a record that was edited", "a figure in it is changed", NAMED,
          ("tests/test_records.py::test_record_edited_by_hand_is_named",)),
    Fault("a record of another run", "its folder is renamed", NAMED,
          ("tests/test_records.py::test_record_in_another_runs_folder_is_named",)),
    Fault("a record of another version", "schema versions 0, 2, a text, none", NAMED,
          ("tests/test_records.py::test_record_of_another_schema_version_is_named",)),
    Fault("a table that was changed or is gone", "a byte of items.parquet, then the file", NAMED,
          ("tests/test_records.py::test_changed_and_missing_tables_are_named",)),
    Fault("data files cut short", "Parquet, gzip, JSON and CSV at every tenth of their length",
          "their rows, or one message that names the file", (f"{FILES}::test_data_file_that_is_cut_"
          "short_is_read_or_named",)),
    Fault("a data file that changes while it is read", "another process writes it again and again",
          "all rows of one writing, or one message",
          (f"{FILES}::test_data_file_that_changes_gives_one_writing_or_a_message",)),
    Fault("a checkpoint cut short", "each of its files, at 0, 50 and 99 %", "the one before it is "
          "taken", (f"{RUNS}::test_checkpoint_that_is_cut_short_anywhere_is_not_taken_for_whole",)),
    Fault("trained weights cut short", "100 bytes less, after their mark", f"not taken; {SAME}",
          (f"{RUNS}::test_weights_that_are_cut_short_after_their_training_are_trained_again",)),
    Fault("a checkpoint that asks for code", "a pickle that names a function, in the optimizer's, "
          "the random numbers' and the weights' file", "refused by name, nothing carried out",
          (f"{RUNS}::test_checkpoint_that_asks_for_code_is_refused_by_name",)),
    Fault("a session that cannot be read", "session.json empty, cut, another kind", NAMED,
          (f"{RUNS}::test_unreadable_session_is_one_message",)),
    Fault("a clock that is set back", "by an hour, and across a day, in mid-run", "every duration "
          "is what passed; the record stays whole",
          (f"{FILES}::test_clock_that_is_set_back_changes_no_duration",)),
    Fault("two users of one cache", "two processes make one folder; the first one is killed",
          "the second makes it; no half of a folder is ever seen",
          (f"{FILES}::test_cache_of_two_users_survives_the_kill_of_one",)),
    Fault("a hub that cuts off", "a download ends after 500 kB, once and again and again",
          f"it goes on where it broke; then {ONE_MESSAGE}",
          ("tests/test_hub.py::test_download_that_breaks_off_goes_on_where_it_broke",
           "tests/test_hub.py::test_download_that_breaks_off_again_and_again_is_one_message_and_"
           "the_rest_is_kept")),
    Fault("a hub that stalls", "it takes a request and says nothing more", ONE_MESSAGE,
          ("tests/test_hub.py::test_hub_that_stalls_is_one_message",)),
    Fault("a hub's wrong bytes", "other content, other length", f"refused, kept nowhere; "
          f"{ONE_MESSAGE}",
          ("tests/test_hub.py::test_content_with_another_checksum_is_refused_and_does_not_stay",
           "tests/test_hub.py::test_content_of_another_length_is_refused_and_does_not_stay")),
    Fault("a hub's 401 and 403", "a gated model, a token that it does not know", ONE_MESSAGE,
          ("tests/test_hub.py::test_gated_model_asks_for_its_licence_and_a_token",
           "tests/test_hub.py::test_token_that_the_hub_does_not_know_is_named_as_the_cause")),
    Fault("a hub's 404", "no such repository, no such revision", ONE_MESSAGE,
          ("tests/test_hub.py::test_unknown_repository_or_revision_is_one_message",)),
    Fault("a hub's 429 and 503", "once; 500 for good", f"asked again; then {ONE_MESSAGE}",
          ("tests/test_hub.py::test_fault_that_passes_is_asked_again",
           "tests/test_hub.py::test_fault_that_stays_is_one_message_and_its_number")),
    Fault("a lost Ray node", "SIGKILL of a machine's processes in mid-run", "the run goes on "
          "elsewhere from its last checkpoint, as an undisturbed one",
          ("tests/test_ray.py::test_run_of_a_lost_machine_goes_on_elsewhere_and_ends_as_an_"
           "unbroken_one",)),
    Fault("a lost Ray head", "SIGKILL of the cluster's own process in mid-run", "one message, exit "
          "2; the same study goes on without Ray, from the checkpoint that came home",
          ("tests/test_ray.py::test_lost_head_is_one_message_and_the_study_goes_on_without_it",)),
    Fault("NaN in a weight before training", "an embedding filled with it", "a record: diverged, "
          "at the step", ("tests/test_train.py::test_loss_that_is_not_finite_stops_the_run_as_a_"
                          "result",)),
    Fault("a gradient that is not finite", "a hook on a weight", "a record: diverged, at the step",
          ("tests/test_train.py::test_a_gradient_that_is_not_finite_stops_the_run_at_its_step",)),
    Fault("a weight that the optimizer broke", "infinity after the last update", "a record: "
          "diverged, with the weight's name", ("tests/test_train.py::test_weights_that_the_last_"
                                               "update_broke_are_a_result_too",)),
    Fault("a look for open ports", "at the kernel, its run and what forks them, in mid-run",
          "none that others reach, and none afterwards",
          (f"{RUNS}::test_no_port_is_open_to_others_and_none_stays",)),
    Fault("a planted secret", "HF_TOKEN in the environment of every run here", "it stands in no "
          "record, table, notebook, traceback or log",
          (f"{RUNS}::test_planted_secret_is_in_no_file",)),
)  # fmt: skip
