"""A folder labelled by many workers: the answers of one process, and every song accounted for."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import seqagg
from seqagg import Songs, cache, cli, scale
from seqagg.cache import write_cache
from seqagg.engines import Engine, TaskError
from seqagg.errors import CacheError, ParameterError, SongError
from seqagg.manifest import Manifest
from seqagg.places import place_of
from seqagg.prediction import predict_cache
from seqagg.scale import Account, Part, Record, predict_folder
from seqagg.shards import find_shards, index_shards, write_shards
from tests.accidents import die, label_or_die, say_and_sleep
from tests.conftest import order_free_songs


@pytest.fixture(scope="module")
def songs() -> Songs:
    drawn = order_free_songs(120)
    labels = [None if i % 10 == 3 else label for i, label in enumerate(drawn.labels)]
    split = ["train" if i % 3 else "test" for i in range(120)]
    return drawn.replace(labels=labels, split=split)


@pytest.fixture
def model(tmp_path: Path, songs: Songs) -> Path:
    path = tmp_path / "model.safetensors"
    seqagg.MeanLogOdds().fit(songs[[label is not None for label in songs.labels]]).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path, songs: Songs) -> Path:
    """Four files of 30 songs."""
    write_shards([songs], tmp_path / "songs", 30)
    return tmp_path / "songs"


@pytest.fixture
def expected(tmp_path: Path, model: Path, folder: Path) -> pa.Table:
    """What one process says of all songs at once."""
    predict_cache(model, folder, tmp_path / "all.parquet")
    return pq.read_table(tmp_path / "all.parquet")


def tables(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("*.parquet"))])


def visible(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if not path.name.startswith("."))


PARTS = [f"songs-0000{i}" for i in range(4)]
DONE = ["_job", *(f"{part}.parquet" for part in PARTS)]


def test_one_process_writes_what_predict_writes(
    model: Path, folder: Path, expected: pa.Table, tmp_path: Path
) -> None:
    account = predict_folder(model, folder, tmp_path / "out")
    assert tables(tmp_path / "out").equals(expected)
    assert visible(tmp_path / "out") == DONE
    assert (account.n_songs, account.n_out, account.n_refused) == (120, 120, 0)
    whole = predict_cache(model, folder, tmp_path / "again.parquet")
    assert account.report == whole
    saved = json.loads((tmp_path / "out" / "_job" / "account.json").read_text())
    assert saved == account.as_json()
    assert saved["accuracy"] == whole.accuracy


def test_readers_of_parquet_folders_see_the_tables_alone(
    model: Path, folder: Path, expected: pa.Table, tmp_path: Path
) -> None:
    predict_folder(model, folder, tmp_path / "out")
    assert pq.read_table(tmp_path / "out").equals(expected)


def test_a_bucket_to_a_bucket(
    model: Path, songs: Songs, expected: pa.Table, tmp_path: Path
) -> None:
    write_shards([songs], f"memory://{tmp_path}/songs", 30)
    out = f"memory://{tmp_path}/out"
    predict_folder(model, f"memory://{tmp_path}/songs", out)
    files = [place_of(out) / f"{part}.parquet" for part in PARTS]
    assert pa.concat_tables([pq.read_table(file.open()) for file in files]).equals(expected)
    assert predict_folder(model, f"memory://{tmp_path}/songs", out).n_before == 4


def test_a_split(model: Path, folder: Path, tmp_path: Path) -> None:
    account = predict_folder(model, folder, tmp_path / "out", split="test")
    predict_cache(model, folder, tmp_path / "all.parquet", split="test")
    assert tables(tmp_path / "out").equals(pq.read_table(tmp_path / "all.parquet"))
    assert account.n_songs == 40
    with pytest.raises(ParameterError, match="no song of split"):
        predict_folder(model, folder, tmp_path / "other", split="dev")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_large_file_is_dealt_out_by_row_groups(
    model: Path,
    songs: Songs,
    expected: pa.Table,
    tmp_path: Path,
    suffix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache, "_ROW_GROUP_BYTES", 1500)
    monkeypatch.setattr(scale, "_LARGE", 3500)
    (tmp_path / "large").mkdir()
    write_cache(songs, tmp_path / "large" / f"songs{suffix}")
    parts = scale.make_parts(tmp_path / "large", find_shards(tmp_path / "large"))
    account = predict_folder(model, tmp_path / "large", tmp_path / "out")
    assert tables(tmp_path / "out").equals(expected)
    if suffix == ".parquet":
        assert len(parts) == account.n_parts > 2
        ends = [part.groups for part in parts]
        assert [end for _, end in ends[:-1]] == [first for first, _ in ends[1:]]
    assert sum(part.n_songs for part in parts) == 120


class TestFaults:
    def test_songs_that_cannot_be_used_are_refused_one_by_one(
        self, model: Path, folder: Path, expected: pa.Table, songs: Songs, tmp_path: Path
    ) -> None:
        """Null scores, a frame too wide, no frame, only missing frames: of two files."""
        rows = pq.read_table(folder / f"{PARTS[1]}.parquet")
        scores = rows["scores"].to_pylist()
        scores[4] = None
        scores[11][0].append(0.5)
        wide = pa.array(scores, pa.list_(pa.list_(pa.float32())))
        at = rows.column_names.index("scores")
        pq.write_table(rows.set_column(at, "scores", wide), folder / f"{PARTS[1]}.parquet")
        third = songs[60:90]
        values, lengths = third.values.copy(), third.lengths.copy()
        values[third.offsets[20] : third.offsets[21]] = np.nan
        keep = np.repeat(np.arange(30) != 9, lengths)
        lengths[9] = 0
        third = third.replace(values=values[keep], offsets=np.r_[0, np.cumsum(lengths)])
        write_cache(third, folder / f"{PARTS[2]}.parquet")
        index_shards(folder)

        account = predict_folder(model, folder, tmp_path / "out")
        bad = [str(songs.ids[i]) for i in (34, 41, 69, 80)]
        assert sorted(account.refused) == sorted(bad)
        assert "null" in account.refused[bad[0]]
        assert "4 scores for 3" in account.refused[bad[1]]
        assert (account.n_songs, account.n_out, account.n_refused) == (120, 116, 4)
        good = pa.array([i not in (34, 41, 69, 80) for i in range(120)])
        assert tables(tmp_path / "out").equals(expected.filter(good))
        with pytest.raises((CacheError, SongError)):
            predict_cache(model, folder, tmp_path / "strict.parquet")

    @pytest.mark.parametrize("damage", ["cut", "bit", "gone"])
    def test_a_damaged_file_fails_alone_and_is_done_when_it_is_mended(
        self, model: Path, folder: Path, expected: pa.Table, tmp_path: Path, damage: str
    ) -> None:
        victim, out = folder / f"{PARTS[2]}.parquet", tmp_path / "out"
        whole = victim.read_bytes()
        if damage == "cut":
            victim.write_bytes(whole[: len(whole) // 2])
        elif damage == "bit":
            victim.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
        else:
            victim.write_bytes(b"")
        account = predict_folder(model, folder, out)
        assert visible(out) == [name for name in DONE if PARTS[2] not in name]
        assert (account.n_songs, account.n_out, account.n_refused) == (120, 90, 30)
        assert list(account.failed) == [PARTS[2]]
        assert str(victim) in account.failed[PARTS[2]]
        victim.write_bytes(whole)
        account = predict_folder(model, folder, out)
        assert (account.n_before, account.n_out, account.n_refused) == (3, 120, 0)
        assert tables(out).equals(expected)

    def test_a_file_with_fewer_songs_than_the_manifest_says(
        self, model: Path, folder: Path, tmp_path: Path
    ) -> None:
        manifest = find_shards(folder)
        first, *others = manifest.shards
        shard = seqagg.manifest.Shard(first.file, 31, first.n_frames, first.n_bytes, first.sha256)
        Manifest(manifest.header, (shard, *others)).write(folder)
        account = predict_folder(model, folder, tmp_path / "out")
        assert "30 songs, not 31" in account.failed[PARTS[0]]
        assert account.n_songs == 121

    def test_a_full_disk_ends_the_work_with_nothing_half_written(
        self, model: Path, folder: Path, expected: pa.Table, tmp_path: Path
    ) -> None:
        out, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
        predict_folder(model, folder, tmp_path / "other")
        sizes = [(tmp_path / "other" / f"{part}.parquet").stat().st_size for part in PARTS]
        resource.setrlimit(resource.RLIMIT_FSIZE, (min(sizes) - 100, limits[1]))
        try:
            with pytest.raises(TaskError) as caught:
                predict_folder(model, folder, out, engine=Engine(retries=1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "large" in str(caught.value)
        assert [p.name for p in out.iterdir()] == ["_job"]
        assert [p.name for p in (out / "_job").iterdir()] == ["job.json"]
        assert predict_folder(model, folder, out).n_out == 120
        assert tables(out).equals(expected)

    def test_a_table_that_was_changed_or_lost_is_made_again(
        self, model: Path, folder: Path, expected: pa.Table, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        predict_folder(model, folder, out)
        changed = out / f"{PARTS[0]}.parquet"
        data = changed.read_bytes()
        changed.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
        (out / f"{PARTS[1]}.parquet").unlink()
        (out / "_job" / f"{PARTS[2]}.json").write_text("{")
        assert predict_folder(model, folder, out).n_before == 1
        assert tables(out).equals(expected)

    @pytest.mark.parametrize(
        "said",
        [
            *({"n_songs": value} for value in ("x", None, -5, 29, 31, 30.0, True, [])),
            *({"refused": value} for value in ([], "x", {"song": None}, {"\ud800": "why"})),
            {"n_labelled": 31},
            {"n_right": 31},
            {"unseen_labels": [1]},
            {"unseen_labels": "x"},
            {"multilabel": None},
            {"n_bytes": "x"},
            {"sha256": None},
            {"failed": 0},
            {"another": 1},
        ],
    )
    def test_a_part_whose_record_is_damaged_is_done_again(
        self, model: Path, folder: Path, tmp_path: Path, said: dict[str, Any]
    ) -> None:
        undisturbed = predict_folder(model, folder, tmp_path / "out")
        file = tmp_path / "out" / "_job" / f"{PARTS[2]}.json"
        whole = file.read_text()
        file.write_text(json.dumps(json.loads(whole) | said))
        account = predict_folder(model, folder, tmp_path / "out")
        assert account.n_before == 3
        assert account.as_json() | {"n_done_before": 0} == undisturbed.as_json()
        assert file.read_text() == whole

    def test_a_driver_that_was_killed_goes_on_when_it_is_started_again(
        self, model: Path, folder: Path, expected: pa.Table, tmp_path: Path
    ) -> None:
        code = (
            "import sys; from seqagg.engines import Engine; from seqagg import scale\n"
            "from tests.accidents import label_or_die\n"
            "run = Engine.run\n"
            "Engine.run = lambda self, function, *rest: run(self, label_or_die, *rest)\n"
            "scale.predict_folder(*sys.argv[1:])"
        )
        out = tmp_path / "out"
        command = [sys.executable, "-c", code, str(model), str(folder), str(out)]
        assert subprocess.run(command, cwd=Path(__file__).parents[1]).returncode == -signal.SIGKILL
        assert visible(out) == DONE[:2]
        assert len(list(out.iterdir())) == 3  # and what was being written
        account = predict_folder(model, folder, out)
        assert (account.n_before, account.n_out) == (1, 120)
        assert tables(out).equals(expected)
        assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []

    def test_the_second_run_after_a_crash_at_half_does_half_the_work(
        self,
        model: Path,
        folder: Path,
        expected: pa.Table,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        write, written = scale.write_labels, []

        def noted(*args: Any) -> None:
            if len(written) == 2:
                written.append("crash")
                raise KeyboardInterrupt
            write(*args)
            written.append(args[3].n_songs)

        monkeypatch.setattr(scale, "write_labels", noted)
        with pytest.raises(KeyboardInterrupt):
            predict_folder(model, folder, tmp_path / "out")
        account = predict_folder(model, folder, tmp_path / "out")
        assert written == [30, 30, "crash", 30, 30]
        assert (account.n_before, account.n_parts, account.n_out) == (2, 4, 120)
        assert tables(tmp_path / "out").equals(expected)

    def test_every_song_comes_out_once_or_is_refused_whatever_happens(
        self,
        model: Path,
        folder: Path,
        songs: Songs,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A song without frames, a file that was cut, a first run that ends in the middle."""
        rows, cut = pq.read_table(folder / f"{PARTS[0]}.parquet"), folder / f"{PARTS[2]}.parquet"
        scores = rows["scores"].to_pylist()
        scores[5] = []
        bad = pa.array(scores, rows.schema.field("scores").type)
        at = rows.column_names.index("scores")
        pq.write_table(rows.set_column(at, "scores", bad), folder / f"{PARTS[0]}.parquet")
        index_shards(folder)
        cut.write_bytes(cut.read_bytes()[:-60])
        write, met = scale.write_labels, []

        def noted(*args: Any) -> None:
            write(*args)
            met.append(args[2])
            if len(met) == 2:
                raise KeyboardInterrupt

        monkeypatch.setattr(scale, "write_labels", noted)
        with pytest.raises(KeyboardInterrupt):
            predict_folder(model, folder, tmp_path / "out")
        account = predict_folder(model, folder, tmp_path / "out")
        out = tables(tmp_path / "out")["song_id"].to_pylist()
        refused = [*account.refused, *map(str, songs.ids[60:90])]
        assert (list(account.refused), list(account.failed)) == ([str(songs.ids[5])], [PARTS[2]])
        assert sorted(out + refused) == sorted(map(str, songs.ids))
        assert (account.n_out, account.n_refused) == (len(out), len(refused)) == (89, 31)


class TestTwoJobs:
    """Of one folder, at the same time."""

    @pytest.fixture
    def other(self, tmp_path: Path, songs: Songs) -> Path:
        labelled = songs[[label is not None for label in songs.labels]]
        seqagg.MeanProbability().fit(labelled).save(tmp_path / "other.safetensors")
        return tmp_path / "other.safetensors"

    def test_the_second_is_refused(
        self,
        model: Path,
        other: Path,
        folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        write = scale._write_json
        both_there, asked = threading.Barrier(2), set()
        errors: dict[Path, ParameterError] = {}
        is_there = Path.exists

        def slowly(*args: Any) -> None:
            time.sleep(0.3)  # in which the other one could come between
            write(*args)

        def in_step(self: Path) -> bool:
            found = is_there(self)
            me = threading.get_ident()
            if self.name == "job.json" and me not in asked:
                asked.add(me)
                both_there.wait(timeout=60)
            return found

        def label(file: Path) -> None:
            try:
                predict_folder(file, folder, tmp_path / "out")
            except ParameterError as error:
                errors[file] = error

        monkeypatch.setattr(scale, "_write_json", slowly)
        monkeypatch.setattr(Path, "exists", in_step)
        threads = [threading.Thread(target=label, args=[file]) for file in (model, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        monkeypatch.undo()
        ((loser, error),) = errors.items()
        assert "is of a job with another model; choose a new folder" in str(error)
        winner = other if loser == model else model
        predict_cache(winner, folder, tmp_path / "expected.parquet")
        assert tables(tmp_path / "out").equals(pq.read_table(tmp_path / "expected.parquet"))
        names = [path.name for path in (tmp_path / "out" / "_job").iterdir()]
        assert sorted(names) == ["account.json", "job.json", *(f"{part}.json" for part in PARTS)]

    def test_in_a_bucket_whose_job_was_written_over(
        self,
        model: Path,
        other: Path,
        folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        out, write = f"memory://{tmp_path}/out", scale._write_json

        def written_over(place: Any, content: dict[str, Any]) -> None:
            write(place, content)
            write(place, content | {"model": "another one's"})

        monkeypatch.setattr(scale, "_write_json", written_over)
        with pytest.raises(ParameterError, match="another model"):
            predict_folder(model, folder, out)

    def test_one_that_was_killed_as_it_began_leaves_a_folder_that_will_do(
        self, model: Path, folder: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "out" / "_job").mkdir(parents=True)
        for name in (".job.json.lock", ".job.0123456789ab.tmp.json"):
            (tmp_path / "out" / "_job" / name).touch()
        assert predict_folder(model, folder, tmp_path / "out").n_out == 120
        hidden = [p.name for p in (tmp_path / "out" / "_job").iterdir() if p.name.startswith(".")]
        assert hidden == []


class TestProcesses:
    def test_a_worker_that_is_killed_loses_nothing(
        self,
        model: Path,
        folder: Path,
        expected: pa.Table,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        predict_folder(model, folder, tmp_path / "undisturbed")
        monkeypatch.setattr(scale, "label_part", label_or_die)
        account = predict_folder(model, folder, tmp_path / "out", engine=Engine(jobs=2))
        assert (tmp_path / "accident").exists()
        assert (account.n_out, account.n_refused) == (120, 0)
        assert visible(tmp_path / "out") == DONE
        for name in DONE[1:]:
            undisturbed = (tmp_path / "undisturbed" / name).read_bytes()
            assert (tmp_path / "out" / name).read_bytes() == undisturbed

    def test_a_task_that_kills_every_worker_is_given_up(self) -> None:
        with pytest.raises(TaskError, match="died"):
            list(Engine(jobs=2, retries=0).run(die, None, [1]))

    def test_workers_end_with_their_driver(self, tmp_path: Path) -> None:
        code = (
            "import sys; from pathlib import Path; from seqagg.engines import Engine\n"
            "from tests.accidents import say_and_sleep\n"
            "if __name__ == '__main__':\n"
            "    list(Engine(jobs=2).run(say_and_sleep, Path(sys.argv[1]), [1, 2]))"
        )
        command = [sys.executable, "-c", code, str(tmp_path)]
        driver = subprocess.Popen(command, cwd=Path(__file__).parents[1])
        wait_until(lambda: len(list(tmp_path.iterdir())) > 0)
        workers = [int(path.name) for path in tmp_path.iterdir()]
        driver.kill()
        driver.wait()
        wait_until(lambda: not any(map(is_alive, workers)))


class TestCommand:
    def test_it_writes_a_folder_and_the_account(
        self, model: Path, folder: Path, expected: pa.Table, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        done = run("predict", model, folder, "--out", out, "--json")
        assert json.loads(done.stdout)["n_out"] == 120
        assert tables(out).equals(expected)
        again = run("predict", model, folder, "--out", out)
        assert "120 songs in = 120 labelled + 0 refused; 4 parts, 4 of them before" in again.stdout

    def test_it_fails_if_a_file_did(self, model: Path, folder: Path, tmp_path: Path) -> None:
        (folder / f"{PARTS[3]}.parquet").write_bytes(b"x")
        done = run("predict", model, folder, "--out", tmp_path / "out", exit_code=2)
        assert "120 songs in = 90 labelled + 30 refused" in done.stdout
        assert done.stderr.startswith("seqagg: 1 of 4 parts failed; songs-00003: ")
        assert done.stderr.count("\n") == 1

    def test_one_table_is_written_by_one_process(
        self, model: Path, folder: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "labels.csv"
        done = run("predict", model, folder, "--out", out, "--jobs", 2, exit_code=2)
        assert "--out is a folder" in done.stderr

    def test_a_table_at_a_url(
        self, model: Path, folder: Path, expected: pa.Table, tmp_path: Path
    ) -> None:
        out = f"memory://{tmp_path}/labels.parquet"
        run("predict", model, folder, "--out", out)
        assert pq.read_table(place_of(out).open()).equals(expected)

    def test_inspect_reads_scores_when_it_is_told_to(self, folder: Path) -> None:
        told, asked = (
            json.loads(run("inspect", folder, "--json", option).stdout)
            for option in ("--no-scores", "--scores")
        )
        assert (told["n_missing"], asked["n_missing"]) == (None, 0)
        assert told["classes"] == asked["classes"]


class TestRefusals:
    def test_a_folder_of_another_job(self, model: Path, folder: Path, tmp_path: Path) -> None:
        predict_folder(model, folder, tmp_path / "out")
        with pytest.raises(ParameterError, match="another split"):
            predict_folder(model, folder, tmp_path / "out", split="test")
        seqagg.MeanProbability().fit(order_free_songs(9)).save(model)
        with pytest.raises(ParameterError, match="another model"):
            predict_folder(model, folder, tmp_path / "out")

    @pytest.mark.parametrize("said", ["[]", "null", "7", '"x"', "{", "", "\x00", "[" * 9999])
    def test_a_folder_whose_job_is_damaged(
        self, model: Path, folder: Path, tmp_path: Path, said: str
    ) -> None:
        predict_folder(model, folder, tmp_path / "out")
        (tmp_path / "out" / "_job" / "job.json").write_text(said)
        done = run("predict", model, folder, "--out", tmp_path / "out", exit_code=2)
        assert done.stderr.count("\n") == 1
        assert "job.json is damaged; choose a new folder" in done.stderr

    def test_a_folder_with_something_else(self, model: Path, folder: Path) -> None:
        with pytest.raises(ParameterError, match="new folder"):
            predict_folder(model, folder, folder)

    def test_songs_of_other_columns_end_the_work(
        self, model: Path, songs: Songs, tmp_path: Path
    ) -> None:
        write_shards([songs.replace(columns=["x", "y", "z"])], tmp_path / "songs")
        with pytest.raises(SongError, match="column"):
            predict_folder(model, tmp_path / "songs", tmp_path / "out")

    @pytest.mark.parametrize(
        "settings",
        [{"name": "spark"}, {"jobs": 0}, {"address": "auto"}, {"retries": -1}],
    )
    def test_engines_that_there_are_not(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ParameterError):
            Engine(**settings)

    def test_without_ray_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(ParameterError, match=r"pip install 'seqagg\[ray\]'"):
            list(Engine("ray").run(say_and_sleep, None, [1]))


def test_an_account_names_no_more_than_the_first() -> None:
    account = Account(1)
    part = Part("p", "p.parquet", None, 30, 1, None)
    account.add(part, Record(1, {str(i): "why" for i in range(29)}))
    assert len(account.refused) == 20
    assert (account.n_songs, account.n_refused) == (30, 29)


def run(*args: Any, exit_code: int = 0) -> Any:
    done = CliRunner().invoke(cli.main, [str(a) for a in args])
    assert done.exit_code == exit_code, done.output
    return done


def wait_until(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may still wait to be asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
