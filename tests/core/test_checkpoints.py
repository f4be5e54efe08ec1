import errno
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from lightrft_core.checkpoints import Checkpoints
from lightrft_core.errors import RunFailed
from lightrft_core.seal import sha256_of

CONTENT = {"model.safetensors": bytes(range(256)) * 40, "optim/rank_0.safetensors": b"moment" * 500}


def write(folder: Path) -> None:
    for name, data in CONTENT.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def saved(root: Path, *steps: int, keep: int = 3) -> Checkpoints:
    checkpoints = Checkpoints(root, keep)
    for step in steps:
        checkpoints.save(step, {"step": step}, write)
    return checkpoints


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    state = {"step": 7, "float": 0.1 + 0.2, "nested": {"list": [1, None, True, "ä"]}, "big": 2**62 + 1}
    path = Checkpoints(tmp_path / "c", 3).save(7, state, write)
    found = Checkpoints(tmp_path / "c", 3).newest()
    assert path.name == "step_000007"
    assert (found.path, found.step, found.state) == (path, 7, state)
    assert (path / "model.safetensors").read_bytes() == CONTENT["model.safetensors"]


def test_without_any_checkpoint_there_is_no_newest(tmp_path):
    assert Checkpoints(tmp_path / "nowhere", 1).newest() is None


def test_the_manifest_lists_every_file_with_size_and_hash(tmp_path):
    saved(tmp_path, 1)
    manifest = json.loads((tmp_path / "step_000001" / "manifest.json").read_text())
    assert set(manifest["files"]) == {"model.safetensors", "optim/rank_0.safetensors", "state.json"}
    assert manifest["files"]["optim/rank_0.safetensors"]["size"] == 3000
    assert len(manifest["files"]["state.json"]["sha256"]) == 64


def test_only_the_newest_are_kept(tmp_path):
    saved(tmp_path, 2, 4, 6, 8, keep=2)
    assert names(tmp_path) == ["step_000006", "step_000008"]


def test_old_ones_go_until_all_together_are_small_enough(tmp_path):
    size = size_of(saved(tmp_path, 1).newest().path)
    checkpoints = Checkpoints(tmp_path, 9, max_bytes=2.5 * size)
    for step in (2, 3, 4):
        checkpoints.save(step, {"step": step}, write)
    assert names(tmp_path) == ["step_000003", "step_000004"]


def test_the_newest_stays_however_large_it_is(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, 9, max_bytes=10)
    for step in (1, 2):
        checkpoints.save(step, {"step": step}, write)
    assert names(tmp_path) == ["step_000002"]
    assert "step_000002 alone takes " in caplog.text
    assert " bytes, more than checkpoint.max_gb allows" in caplog.text


def test_number_and_size_both_limit(tmp_path):
    size = size_of(saved(tmp_path, 1).newest().path)
    for step in (2, 3, 4):
        Checkpoints(tmp_path, 2, max_bytes=99 * size).save(step, {"step": step}, write)
    assert names(tmp_path) == ["step_000003", "step_000004"]


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_the_old_one_goes_only_after_the_new_one_is_there(tmp_path):
    checkpoints = saved(tmp_path, 1, keep=1)
    seen = []
    checkpoints.save(2, {}, lambda folder: seen.extend(names(tmp_path)))
    assert seen == ["step_000001", "tmp_step_000002"]
    assert names(tmp_path) == ["step_000002"]


def test_folders_of_others_are_never_deleted(tmp_path):
    for name in ("step_000001", "step_best", "notes", "tmp_step_000009", "gone_step_000003"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious.txt").write_text("mine")
    saved(tmp_path, 5, 6, keep=1)
    assert names(tmp_path) == [
        "gone_step_000003", "notes", "step_000001", "step_000006", "step_best", "tmp_step_000009",
    ]  # fmt: skip


def test_a_folder_of_others_with_our_name_is_set_aside(tmp_path, caplog):
    (tmp_path / "step_000005").mkdir()
    (tmp_path / "step_000005" / "precious.txt").write_text("mine")
    saved(tmp_path, 5)
    assert (tmp_path / "foreign_step_000005_0" / "precious.txt").read_text() == "mine"
    assert "does not look like ours" in caplog.text
    assert Checkpoints(tmp_path, 1).newest().step == 5


def test_the_same_step_can_be_saved_again(tmp_path):
    checkpoints = saved(tmp_path, 3, keep=1)
    checkpoints.save(3, {"again": True}, write)
    assert names(tmp_path) == ["step_000003"]
    assert Checkpoints(tmp_path, 1).newest().state == {"again": True}


def test_steps_and_at_find_what_there_is(tmp_path):
    checkpoints = saved(tmp_path, 1, 2)
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.at(1).state == {"step": 1}
    assert checkpoints.at(9) is None


def test_a_number_as_key_is_refused_since_json_would_change_it(tmp_path):
    with pytest.raises(TypeError, match=r"state\.counts has the key 3"):
        Checkpoints(tmp_path, 1).save(1, {"counts": {3: 1}}, write)
    assert names(tmp_path) == []


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
}
FILES = ["model.safetensors", "optim/rank_0.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_previous_used(tmp_path, caplog, damage, file):
    saved(tmp_path, 1, 2)
    DAMAGE[damage](tmp_path / "step_000002" / file)
    assert Checkpoints(tmp_path, 3).newest().step == 1
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "step_000002" in message
    assert file in message


def test_every_flipped_bit_of_a_manifest_is_noticed(tmp_path):
    checkpoints = saved(tmp_path, 1)
    path = tmp_path / "step_000001" / "manifest.json"
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ (1 << place % 8)]) + good[place + 1 :])
        assert checkpoints.newest() is None, f"byte {place}"
    path.write_bytes(good)
    assert checkpoints.newest().step == 1


def test_a_hundred_random_flips_and_cuts_are_all_noticed(tmp_path):
    checkpoints = saved(tmp_path, 1)
    rng = random.Random(0)
    for _ in range(100):
        path = tmp_path / "step_000001" / rng.choice(FILES)
        good = path.read_bytes()
        place = rng.randrange(len(good))
        flipped = good[:place] + bytes([good[place] ^ (1 << rng.randrange(8))]) + good[place + 1 :]
        path.write_bytes(rng.choice([good[:place], flipped]))
        assert checkpoints.newest() is None
        path.write_bytes(good)


def test_a_file_that_was_not_written_by_us_is_named(tmp_path, caplog):
    saved(tmp_path, 1, 2)
    (tmp_path / "step_000002" / "model-2.safetensors").write_bytes(b"planted")
    (tmp_path / "step_000002" / ".nfs0001").write_bytes(b"harmless")
    assert Checkpoints(tmp_path, 3).newest().step == 1
    assert "model-2.safetensors is not in its manifest.json" in caplog.text


def test_a_renamed_checkpoint_is_refused(tmp_path, caplog):
    saved(tmp_path, 1, 2)
    (tmp_path / "step_000002").rename(tmp_path / "step_000004")
    assert Checkpoints(tmp_path, 3).newest().step == 1
    assert "is that of step 2" in caplog.text


def test_a_damaged_checkpoint_does_not_take_the_place_of_a_whole_one_when_pruning(tmp_path):
    saved(tmp_path, 1, 2)
    DAMAGE["flipped"](tmp_path / "step_000002" / "model.safetensors")
    checkpoints = Checkpoints(tmp_path, 2)
    assert checkpoints.newest().step == 1
    checkpoints.save(3, {}, write)
    assert names(tmp_path) == ["step_000001", "step_000003"]


def no_space(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_old_checkpoint_and_says_how_much_is_missing(tmp_path):
    checkpoints = saved(tmp_path / "run" / "checkpoints", 1, keep=1)
    with pytest.raises(RunFailed) as failure:
        checkpoints.save(2, {}, no_space)
    text = str(failure.value)
    assert "No space left on device" in text
    assert "bytes free" in text
    assert f"the last checkpoint took {sum(map(len, CONTENT.values())):,}"[:-3] in text
    assert "step_000001 is intact" in text
    assert f"lightrft train --resume {tmp_path / 'run'}" in text
    assert names(tmp_path / "run" / "checkpoints") == ["step_000001"]
    assert checkpoints.newest().step == 1


def test_safetensors_own_error_of_a_full_disk_is_understood(tmp_path):
    def write_full(folder: Path) -> None:
        raise ValueError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(RunFailed, match="No space left on device"):
        Checkpoints(tmp_path, 1).save(1, {}, write_full)


def test_a_programming_error_in_write_is_not_disguised(tmp_path):
    checkpoints = saved(tmp_path, 1)
    with pytest.raises(ZeroDivisionError):
        checkpoints.save(2, {}, lambda folder: 1 / 0)
    assert names(tmp_path) == ["step_000001"]


def test_a_file_size_limit_of_the_operating_system_is_a_failed_run(tmp_path):
    saved(tmp_path / "c", 1)
    code = """
        import resource, sys
        from pathlib import Path
        from lightrft_core.checkpoints import Checkpoints
        from lightrft_core.errors import RunFailed
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        checkpoints = Checkpoints(Path(sys.argv[1]), 1)
        try:
            checkpoints.save(2, {}, lambda folder: (folder / "w").write_bytes(b"x" * 10000) and None)
        except RunFailed as failure:
            print(failure, checkpoints.newest().step)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "c")], capture_output=True, text=True, timeout=60
    )
    assert "File too large" in done.stdout
    assert done.stdout.strip().endswith(" 1")
    assert names(tmp_path / "c") == ["step_000001"]


KILLED_SAVE = """
    import os, signal, sys, builtins
    from pathlib import Path
    import lightrft_core.checkpoints as checkpoints, lightrft_core.seal as seal

    root, keep, point = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    calls = 0

    def counted(function):
        def wrapper(*args, **kwargs):
            global calls
            calls += 1
            if calls == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return wrapper

    for name in ("open", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "scandir"):
        setattr(os, name, counted(getattr(os, name)))
    builtins.open = counted(builtins.open)
    Path.open = counted(Path.open)

    def write(folder):
        for number in range(3):
            (folder / f"part{number}.safetensors").write_bytes(bytes([number]) * 5000)

    store = checkpoints.Checkpoints(root, keep)
    for step in range(3, 6):
        store.save(step, {"step": step}, write)
    print(calls)
"""


def killed_save(root: Path, keep: int, point: int) -> subprocess.CompletedProcess:
    code = textwrap.dedent(KILLED_SAVE)
    return subprocess.run(
        [sys.executable, "-c", code, str(root), str(keep), str(point)], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("keep", [1, 2])
def test_killed_at_any_system_call_of_a_save_a_whole_checkpoint_is_found_and_training_goes_on(tmp_path, keep):
    total = int(killed_save(tmp_path / "dry", keep, 0).stdout)
    assert total > 60
    points = sorted({*range(1, total + 1, 5), total, total - 1, total - 2})
    before = tmp_path / "before"
    saved(before, 1, 2, keep=keep)
    for point in points:
        root = tmp_path / f"kill{point}"
        shutil.copytree(before, root)
        assert killed_save(root, keep, point).returncode == -signal.SIGKILL
        found = Checkpoints(root, keep).newest()
        assert found is not None, point
        assert 2 <= found.step <= 5
        assert found.state == {"step": found.step}
        Checkpoints(root, keep).save(6, {"step": 6}, write)
        assert Checkpoints(root, keep).newest().step == 6
        left = [name for name in names(root) if not name.startswith("step_")]
        assert left == [], point
        shutil.rmtree(root)


def test_killed_at_random_moments_of_endless_saving_a_whole_checkpoint_is_always_found(tmp_path):
    code = """
        import sys
        from pathlib import Path
        from lightrft_core.checkpoints import Checkpoints
        store = Checkpoints(Path(sys.argv[1]), 1)
        step = store.newest().step
        print("ready", flush=True)
        while True:
            step += 1
            store.save(step, {"step": step}, lambda f: (f / "w.safetensors").write_bytes(bytes([step % 256]) * 9000))
    """
    saved(tmp_path, 1, keep=1)
    rng = random.Random(1)
    last = 1
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        stop = threading.Timer(rng.uniform(0.0, 0.15), process.kill)
        stop.start()
        process.wait(timeout=60)
        process.stdout.close()
        found = Checkpoints(tmp_path, 1).newest()
        assert found.state == {"step": found.step}
        assert found.step >= last
        last = found.step
    assert last > 1


class ThreadWorld:
    """Ranks as threads: enough to see that all of them agree."""

    def __init__(self, rank, size, barrier, slots):
        self.rank, self.size, self._barrier, self._slots = rank, size, barrier, slots

    def gather(self, item):
        self._slots[self.rank] = json.loads(json.dumps(item))
        self._barrier.wait(20)
        everybody = list(self._slots)
        self._barrier.wait(20)
        return everybody

    def sum(self, values):
        return [sum(column) for column in zip(*self.gather(values), strict=True)]

    def barrier(self):
        self.gather(None)


def on_ranks(size, work):
    barrier, slots, results = threading.Barrier(size), [None] * size, [None] * size

    def run(rank):
        try:
            results[rank] = work(ThreadWorld(rank, size, barrier, slots))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def test_all_ranks_write_their_files_into_one_checkpoint(tmp_path):
    def work(world):
        def write_rank(folder):
            (folder / f"rank_{world.rank}.safetensors").write_bytes(bytes([world.rank]) * 100)

        return Checkpoints(tmp_path, 2).save(4, {"world": world.size}, write_rank, world)

    assert on_ranks(3, work) == [tmp_path / "step_000004"] * 3
    found = on_ranks(3, lambda world: Checkpoints(tmp_path, 2).newest(world))
    assert [checkpoint.state for checkpoint in found] == [{"world": 3}] * 3
    assert sorted(path.name for path in found[0].path.glob("rank_*")) == [f"rank_{n}.safetensors" for n in range(3)]


def test_ranks_share_the_hashing_of_the_files(tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr("lightrft_core.seal.sha256_of", lambda path: hashed.append(path.name) or sha256_of(path))
    saved(tmp_path, 1)
    hashed.clear()
    assert [found.step for found in on_ranks(2, lambda world: Checkpoints(tmp_path, 1).newest(world))] == [1, 1]
    assert sorted(hashed) == ["model.safetensors", "rank_0.safetensors", "state.json"]


@pytest.mark.parametrize("file", FILES)
def test_damage_that_one_rank_finds_is_told_once_and_heeded_by_all(tmp_path, caplog, file):
    saved(tmp_path, 1, 2)
    DAMAGE["flipped"](tmp_path / "step_000002" / file)
    assert [found.step for found in on_ranks(2, lambda world: Checkpoints(tmp_path, 2).newest(world))] == [1, 1]
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "step_000002" in message
    assert file in message


def test_more_is_written_once_all_ranks_are_done_with_what_comes_before(tmp_path):
    done = []

    def first(world):
        return lambda folder: done.append("first") or write_part(folder, f"first{world.rank}")

    def second(world):
        return lambda folder: write_part(folder, f"second{world.rank}:{done.count('first')}")

    on_ranks(2, lambda world: Checkpoints(tmp_path, 2).save(1, {}, first(world), world, also=[second(world)]))
    parts = sorted(path.name for path in (tmp_path / "step_000001").glob("*:*"))
    assert parts == ["second0:2", "second1:2"]


def write_part(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"part")


def test_what_fails_on_one_rank_keeps_the_others_from_the_next_part(tmp_path):
    def work(world):
        parts = [no_space if world.rank == 0 else write, lambda folder: pytest.fail("it must not come to this")]
        return Checkpoints(tmp_path, 2).save(1, {}, parts[0], world, also=parts[1:])

    results = on_ranks(2, work)
    assert all(isinstance(error, RunFailed) and "rank 0: " in str(error) for error in results)


def test_a_full_disk_on_one_rank_fails_the_save_on_all(tmp_path):
    saved(tmp_path, 1)

    def work(world):
        return Checkpoints(tmp_path, 2).save(2, {}, no_space if world.rank == 1 else write, world)

    results = on_ranks(2, work)
    assert all(isinstance(error, RunFailed) for error in results)
    assert all("rank 1: " in str(error) and "No space left" in str(error) for error in results)
    assert names(tmp_path) == ["step_000001"]


def test_a_programming_error_on_one_rank_does_not_leave_the_others_waiting(tmp_path):
    def work(world):
        return Checkpoints(tmp_path, 2).save(2, {}, (lambda folder: 1 / 0) if world.rank == 1 else write, world)

    first, second = on_ranks(2, work)
    assert isinstance(first, RunFailed)
    assert "ZeroDivisionError" in str(first)
    assert isinstance(second, ZeroDivisionError)


def test_tidying_removes_what_a_kill_left_behind_and_keeps_the_rest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {}, write)
    shutil.copytree(tmp_path / "step_000001", tmp_path / "gone_step_000001")
    checkpoints.save(2, {}, write)
    for name in ("gone_step_000001", "tmp_step_000003"):
        shutil.copytree(tmp_path / "step_000002", tmp_path / name)
    (tmp_path / "notes").mkdir()
    checkpoints.tidy()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "step_000002"]


def weights_alone(root: Path, *steps: int, keep: int = 3) -> Checkpoints:
    checkpoints = Checkpoints(root, keep)
    for step in steps:
        checkpoints.save(step, None, write)
    return checkpoints


def test_weights_alone_are_published_kept_and_hashed_as_others_are(tmp_path, caplog):
    found = weights_alone(tmp_path, 2, 4, 6, 8, keep=2).newest()
    assert names(tmp_path) == ["step_000006", "step_000008"]
    assert (found.step, found.is_resumable) == (8, False)
    assert sorted(path.name for path in found.path.iterdir()) == ["manifest.json", "model.safetensors", "optim"]
    DAMAGE["flipped"](found.path / "model.safetensors")
    assert Checkpoints(tmp_path, 2).newest().step == 6
    assert "model.safetensors has another content than was written" in caplog.text


def test_a_run_goes_on_from_the_newest_that_is_more_than_weights(tmp_path, caplog):
    saved(tmp_path, 1, 2, keep=9)
    weights_alone(tmp_path, 3, 4, keep=9)
    checkpoints = Checkpoints(tmp_path, 9)
    assert (checkpoints.newest().step, checkpoints.newest(resumable=True).step) == (4, 2)
    assert (checkpoints.steps(), checkpoints.steps(resumable=True)) == ([1, 2, 3, 4], [1, 2])
    assert [path.name for path in checkpoints.weights_alone()] == ["step_000004", "step_000003"]
    assert on_ranks(2, lambda world: Checkpoints(tmp_path, 9).newest(world, resumable=True).step) == [2, 2]
    DAMAGE["deleted"](tmp_path / "step_000002/state.json")
    assert Checkpoints(tmp_path, 9).newest(resumable=True).step == 1
    assert "state.json is missing" in caplog.text


def test_what_a_run_goes_on_from_stays_when_it_goes_back_past_newer_weights(tmp_path):
    saved(tmp_path, 1, 2, keep=9)
    weights_alone(tmp_path, 3, 4, 5, keep=9)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.tidy()
    assert (names(tmp_path), checkpoints.newest(resumable=True).step) == (["step_000002", "step_000005"], 2)
    weights_alone(tmp_path, 3, 4, keep=2)
    assert names(tmp_path) == ["step_000002", "step_000004", "step_000005"]
    saved(tmp_path, 6, keep=1)
    assert names(tmp_path) == ["step_000006"]


def test_a_size_limit_leaves_the_newest_and_what_a_run_goes_on_from(tmp_path, caplog):
    size = size_of(saved(tmp_path, 1, 2).newest().path)
    for step in (3, 4, 5):
        Checkpoints(tmp_path, 9, max_bytes=3.5 * size).save(step, None, write)
    assert names(tmp_path) == ["step_000002", "step_000004", "step_000005"]
    assert caplog.text == ""
    Checkpoints(tmp_path, 9, max_bytes=1.5 * size).save(6, None, write)
    assert names(tmp_path) == ["step_000002", "step_000006"]
    assert f"step_000006 and {tmp_path}/step_000002 together take " in caplog.text


def test_a_checkpoint_whose_replacement_was_cut_short_stays_until_there_is_another(tmp_path):
    checkpoints = saved(tmp_path, 1, keep=1)
    (tmp_path / "step_000001").rename(tmp_path / "old_step_000001")
    checkpoints.tidy()
    assert (checkpoints.newest().step, names(tmp_path)) == (1, ["old_step_000001"])
    saved(tmp_path, 1, keep=1)
    assert names(tmp_path) == ["step_000001"]


def test_a_full_disk_is_not_told_to_resume_from_weights_alone(tmp_path):
    checkpoints = weights_alone(tmp_path / "checkpoints", 1)
    with pytest.raises(RunFailed, match=r"step_000001 is intact\. Start another run from these weights: ") as failure:
        checkpoints.save(2, None, no_space)
    folder = tmp_path / "checkpoints/step_000001/hf"
    assert f"`lightrft train {tmp_path}/run.yaml --set model.path={folder} --set run.name=" in str(failure.value)
    assert "--resume" not in str(failure.value)
