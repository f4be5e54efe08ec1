import logging
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading

import pytest
from lightrft_core.data import Group, Media, Prompt, Rollout
from lightrft_core.errors import UserError
from lightrft_core.store import Query, RolloutStore


def rollout(prompt_id="p", index=0, text="answer", reward=1.0, **fields):
    ids = fields.pop("token_ids", (5, 6, 7))
    logprobs = fields.pop("engine_logprobs", (-0.5,) * len(ids))
    return Rollout(
        prompt_id=prompt_id, index=index, token_ids=ids, text=text, engine_logprobs=logprobs, finish_reason="stop",
        policy_version=3, reward=reward, shaped_reward=reward, **fields,
    )  # fmt: skip


def group(*rollouts, prompt_id="p", **fields):
    prompt = Prompt(id=prompt_id, messages=({"role": "user", "content": "What is 1+1?"},), **fields)
    return Group(prompt, (1, 2, 3), list(rollouts))


def filled(path):
    store = RolloutStore(path)
    store.add(0, [group(rollout(reward=0.0, text="before"))], phase="eval")
    store.add(1, [group(rollout(reward=0.25, text="100% sure"), rollout(index=1, reward=0.75, text="50_50"))])
    store.add(2, [group(rollout("q", reward=1.0, text="Sure\\n"), rollout("q", 1, "cut", None, unscored="timed out"),
                        prompt_id="q")])  # fmt: skip
    return store


def texts(rollouts):
    return [item.text for item in rollouts]


def test_a_rollout_comes_back_whole(tmp_path):
    store = RolloutStore(tmp_path / "r.sqlite")
    item = rollout(
        token_ids=(1, 70000, 2**31 - 1), engine_logprobs=(-0.5, -1.25, 0.0), loss_mask=(True, False, True),
        scores={"accuracy": 1.0, "format": 0.5}, seed=2**62 + 1, index=4,
    )  # fmt: skip
    store.add(7, [group(item, reference="2", label="math")])
    (back,) = store.search()
    assert (back.step, back.phase, back.prompt_id, back.index) == (7, "train", "p", 4)
    assert back.messages == ({"role": "user", "content": "What is 1+1?"},)
    assert (back.reference, back.label, back.prompt_token_ids) == ("2", "math", (1, 2, 3))
    assert back.token_ids == item.token_ids
    assert back.logprobs == item.engine_logprobs
    assert back.loss_mask == item.loss_mask
    assert back.scores == item.scores
    assert (back.seed, back.policy_version, back.finish_reason) == (2**62 + 1, 3, "stop")
    assert back.prompt_text == "What is 1+1?"


def test_an_empty_completion_and_half_characters_can_be_stored(tmp_path):
    store = RolloutStore(tmp_path / "r.sqlite")
    store.add(
        1, [group(rollout(token_ids=(), engine_logprobs=(), text="\ud800", unscored="\ud801"), reference="\udfff")]
    )
    (back,) = store.search()
    assert (back.token_ids, back.text, back.unscored, back.reference) == ((), "\\ud800", "\\ud801", "\\udfff")


def test_an_unscored_rollout_keeps_its_reason_and_has_no_reward(tmp_path):
    (back,) = filled(tmp_path / "r.sqlite").search(text="cut")
    assert back.reward is None
    assert back.unscored == "timed out"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"step": 1}, ["100% sure", "50_50"]),
        ({"min_reward": 0.75}, ["Sure\\n", "50_50"]),
        ({"max_reward": 0.25}, ["100% sure", "before"]),
        ({"min_reward": 0.1, "max_reward": 0.8}, ["100% sure", "50_50"]),
        ({"prompt_id": "q"}, ["Sure\\n", "cut"]),
        ({"phase": "eval"}, ["before"]),
        ({"text": "sure"}, ["Sure\\n", "100% sure"]),
        ({"text": "%"}, ["100% sure"]),
        ({"text": "_"}, ["50_50"]),
        ({"text": "\\"}, ["Sure\\n"]),
        ({"text": "' OR 1=1 --"}, []),
        ({"order": "reward"}, ["Sure\\n", "50_50", "100% sure", "before", "cut"]),
        ({"limit": 2}, ["Sure\\n", "cut"]),
    ],
)
def test_searching(tmp_path, query, expected):
    assert texts(filled(tmp_path / "r.sqlite").search(**query)) == expected


def test_the_longest_completion_comes_first_by_length(tmp_path):
    store = RolloutStore(tmp_path / "r.sqlite")
    store.add(1, [group(*(rollout(token_ids=(1,) * n, text=str(n), index=n) for n in (2, 9, 4)))])
    assert texts(store.search(order="length")) == ["9", "4", "2"]


def test_counting_and_steps(tmp_path):
    store = filled(tmp_path / "r.sqlite")
    assert store.count(Query()) == 5
    assert store.count(Query(phase="train", min_reward=0.5)) == 2
    assert store.steps() == [0, 1, 2]


def test_truncated_and_written_again_the_store_equals_one_never_interrupted(tmp_path):
    straight, resumed = filled(tmp_path / "a.sqlite"), filled(tmp_path / "b.sqlite")
    for step in (3, 4):
        resumed.add(step, [group(rollout(text="lost"))])
    resumed.truncate(2)
    for store in (straight, resumed):
        store.add(3, [group(rollout(text="new"))])
    assert resumed.search(limit=-1) == straight.search(limit=-1)


def test_bytes_of_media_are_kept_once_and_files_by_path(tmp_path):
    store = RolloutStore(tmp_path / "r.sqlite")
    media = (Media("image", b"\x89PNG" * 100), Media("audio", "sounds/a.wav"))
    for step in range(3):
        store.add(step, [group(rollout(), prompt_id=f"p{step}", media=media)])
    image, audio = store.search(limit=1)[0].media
    assert audio == {"kind": "audio", "source": "sounds/a.wav"}
    assert store.media(image["source"]) == b"\x89PNG" * 100
    assert sqlite3.connect(tmp_path / "r.sqlite").execute("SELECT count(*) FROM media").fetchone() == (1,)
    with pytest.raises(KeyError):
        store.media("sha256:none")


def test_a_reader_cannot_write(tmp_path):
    filled(tmp_path / "r.sqlite").close()
    reader = RolloutStore(tmp_path / "r.sqlite", readonly=True)
    assert reader.count(Query()) == 5
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.truncate(0)


def test_a_closed_store_is_one_file(tmp_path):
    filled(tmp_path / "r.sqlite").close()
    assert [path.name for path in tmp_path.iterdir()] == ["r.sqlite"]


def test_a_store_that_does_not_exist_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="there is no rollout store"):
        RolloutStore(tmp_path / "r.sqlite", readonly=True)


@pytest.mark.parametrize("content", [b"not a database" * 100, b"SQLite format 3\x00garbage" * 50])
def test_another_file_is_the_users_error(tmp_path, content):
    (tmp_path / "r.sqlite").write_bytes(content)
    with pytest.raises(UserError, match=r"r\.sqlite: .*(cannot be opened|no rollout store)"):
        RolloutStore(tmp_path / "r.sqlite", readonly=True)


def test_a_store_of_a_later_version_is_refused(tmp_path):
    filled(tmp_path / "r.sqlite").close()
    database = sqlite3.connect(tmp_path / "r.sqlite")
    database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(UserError, match=r"version 1 \(but 9\)"):
        RolloutStore(tmp_path / "r.sqlite")


def test_a_folder_name_with_odd_characters_is_no_problem(tmp_path):
    folder = tmp_path / "a?b#c%d e"
    folder.mkdir()
    filled(folder / "r.sqlite").close()
    assert RolloutStore(folder / "r.sqlite", readonly=True).count(Query()) == 5


def test_many_readers_and_two_writers_at_once_see_no_lock_error(tmp_path):
    path = tmp_path / "r.sqlite"
    RolloutStore(path).close()
    failures, done = [], threading.Event()

    def work(action):
        try:
            action()
        except Exception as error:
            failures.append(error)

    def read():
        reader = RolloutStore(path, readonly=True)
        seen = 0
        while not done.is_set():
            count = reader.count(Query(text="answer"))
            assert count >= seen
            assert count % 8 == 0, "half a step was visible"
            seen = count
            reader.search(order="reward", limit=50)
        reader.close()

    def write(rank):
        store = RolloutStore(path)
        for step in range(40):
            store.add(step, [group(*(rollout(index=i) for i in range(8)), prompt_id=f"{rank}/{step}")])
        store.close()

    readers = [threading.Thread(target=work, args=(read,)) for _ in range(3)]
    writers = [threading.Thread(target=work, args=(lambda rank=rank: write(rank),)) for rank in range(2)]
    for thread in [*readers, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert failures == []
    assert RolloutStore(path, readonly=True).count(Query()) == 640


def test_a_writer_killed_in_the_middle_leaves_whole_steps_only(tmp_path):
    code = """
        import sys
        from lightrft_core.data import Group, Prompt, Rollout
        from lightrft_core.store import RolloutStore
        from pathlib import Path
        store = RolloutStore(Path(sys.argv[1]))
        print("ready", flush=True)
        for step in range(10**9):
            rollouts = [Rollout("p", i, (1,) * 50, "x" * 200, (-1.0,) * 50, "stop", 0) for i in range(16)]
            store.add(step, [Group(Prompt("p", ()), (1,), rollouts)])
    """
    rng = random.Random(3)
    for attempt in range(4):
        path = tmp_path / f"{attempt}.sqlite"
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        timer = threading.Timer(rng.uniform(0.02, 0.3), process.kill)
        timer.start()
        process.wait(timeout=60)
        process.stdout.close()
        reader = RolloutStore(path, readonly=True)
        assert reader.count(Query()) == 16 * len(reader.steps())
        assert reader.steps() == list(range(len(reader.steps())))
        reader.close()


def test_a_copied_store_with_its_log_can_be_read(tmp_path):
    store = filled(tmp_path / "r.sqlite")
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tmp_path.glob("r.sqlite*"):
        shutil.copy(path, copy)
    assert RolloutStore(copy / "r.sqlite", readonly=True).count(Query()) == 5
    store.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_in_a_read_only_folder_can_be_read(tmp_path):
    filled(tmp_path / "r.sqlite").close()
    tmp_path.chmod(0o500)
    assert RolloutStore(tmp_path / "r.sqlite", readonly=True).count(Query()) == 5
    tmp_path.chmod(0o700)


def test_a_full_disk_loses_rollouts_but_not_the_run(tmp_path, caplog):
    store = filled(tmp_path / "r.sqlite")
    store._db.execute("PRAGMA max_page_count = 1")
    with caplog.at_level(logging.WARNING):
        store.add(3, [group(rollout(text="x" * 100_000))])
    assert "1 rollouts of step 3 are not in" in caplog.text
    assert "full" in caplog.text
    store._db.execute("PRAGMA max_page_count = 100000")
    store.add(4, [group(rollout(text="later"))])
    assert store.steps() == [0, 1, 2, 4]


def test_nothing_in_the_store_is_pickled(tmp_path):
    filled(tmp_path / "r.sqlite").close()
    data = (tmp_path / "r.sqlite").read_bytes()
    assert b"\x80\x04\x95" not in data
