"""Clips that show the same are found, whatever was done to them; clips that only look alike are not."""

import numpy as np
import pytest

from storage import bands, datasets, files, near
from storage.bands import HOT, VOTES, Index, Signatures, entries
from storage.errors import InputError
from storage.media import scores
from tasks import duplicates, score
from tasks.duplicates import across, find_duplicates, read_pairs, repeats
from tests.films import encode, film, moving, prepare_films, write

FPS = 12


def views(clips):
    """The signatures of some encoded clips, a view of each at a time."""
    found = [scores.measure(data)[1:] for data in clips]
    looks, moves = (np.concatenate(hashes) for hashes in zip(*found, strict=True))
    return near.views(looks, moves, np.array([len(looks) for looks, _ in found]), scores.VIEWS)


def found_among(clips):
    return near.pairs(views(clips), np.ones(len(clips), bool))


def matched(clips):
    found = found_among(clips)
    return set(zip(found["one"].tolist(), found["other"].tolist(), strict=True))


def told_how(clips):
    return [near.HOW[number] for number in found_among(clips)["how"]]


def brighter(frames):
    return [np.clip(frame.astype(float) * 1.1 + 18, 0, 255).astype(np.uint8) for frame in frames]


def boxed(frames):
    return [np.pad(frame, ((8, 8), (0, 0), (0, 0))) for frame in frames]


def larger(frames):
    return [frame.repeat(2, 0).repeat(2, 1) for frame in frames]


def marked(frames):
    made = [frame.copy() for frame in frames]
    for frame in made:
        frame[2:10, 50:62] = (230, 40, 40)
    return made


ALTERED = {
    "coarser encoding": lambda frames: encode(frames, crf=34),
    "twice the size": lambda frames: encode(larger(frames)),
    "black bars": lambda frames: encode(boxed(frames)),
    "brightness and contrast": lambda frames: encode(brighter(frames)),
    "a logo": lambda frames: encode(marked(frames)),
    "half the frame rate": lambda frames: encode(frames[::2], fps=FPS // 2),
    "one second later": lambda frames: encode(frames[FPS:]),
}


@pytest.mark.parametrize("how", ALTERED)
def test_a_copy_is_found_after(how):
    for seed in (8101, 8102):
        frames = moving(seed, 4 * FPS)
        assert matched([encode(frames), ALTERED[how](frames)]) == {(0, 1)}, seed


def test_a_shift_is_measured():
    frames = [frame.repeat(2, 0).repeat(2, 1) for frame in moving(8103, 4 * FPS)]
    for flip, share, how in ((1, 1, ""), (-1, 1, "mirrored"), (1, 0.8, "cropped")):
        late = [frame[:, ::flip] for frame in centre(frames[FPS:], share)]
        for clips, shift in (([frames, late], -scores.GRID), ([late, frames], scores.GRID)):
            found = found_among([encode(clip) for clip in clips])
            assert found["shift"].tolist() == [shift] and near.HOW[found["how"][0]] == how


def centre(frames, share):
    """The middle of frames, as a crop leaves it."""
    height, width = (round(side * (1 - share) / 4) * 2 for side in frames[0].shape[:2])
    return [frame[height : frame.shape[0] - height, width : frame.shape[1] - width] for frame in frames]


def flipped(frames):
    return [frame[:, ::-1] for frame in frames]


def test_a_mirrored_copy_is_found_and_named():
    for seed in (8104, 8105, 8106):
        frames = moving(seed, 4 * FPS)
        assert told_how([encode(frames), encode(flipped(frames), crf=28)]) == ["mirrored"], seed


def test_a_copy_cropped_to_its_middle_is_found_whichever_comes_first():
    for seed, share in ((8107, 0.9), (8108, 0.8)):
        frames = [frame.repeat(2, 0).repeat(2, 1) for frame in moving(seed, 3 * FPS)]
        original, crop = encode(frames), encode(centre(frames, share), crf=28)
        assert matched([original, crop]) == matched([crop, original]) == {(0, 1)}, (seed, share)
    assert told_how([original, crop]) == ["cropped"]
    assert told_how([original, encode(flipped(centre(frames, 0.8)))]) == ["cropped, mirrored"]


def test_the_mirror_of_a_hash_is_the_hash_of_the_mirror():
    pictures = np.random.default_rng(1).uniform(0, 255, (50, scores.CELLS, scores.CELLS))
    plain, mirror = (scores.hashes(p, scores.FAINT) for p in (pictures, pictures[:, :, ::-1]))
    turned = near.mirrored(Signatures(plain, np.zeros(50, np.uint64), np.array([0, 50])))
    assert (turned.looks == mirror).all() and (turned.looks != plain).all() and not turned.moves.any()


def test_other_actors_in_the_same_room_are_other_clips():
    clips = [encode(moving(8110 + i, 3 * FPS, room=8110)) for i in range(8)]
    assert matched(clips) == set()


def test_black_and_flat_clips_do_not_match_each_other():
    """They are alike in having nothing in them, which is no evidence."""
    rng = np.random.default_rng(8120)
    grey = [np.full((48, 64, 3), v, np.uint8) for v in (0, 0, 4, 128, 128, 255)]
    dim = [np.clip(rng.normal(3, 2, (48, 64, 3)), 0, 12).astype(np.uint8) for _ in range(2)]
    assert matched([encode([frame] * 24) for frame in (*grey, *dim)]) == set()


def test_still_pictures_match_their_copies_alone():
    pictures = [film(8130 + i)[0] for i in range(8)]
    clips = [encode([picture] * 24) for picture in pictures] + [encode([pictures[0]] * 30, crf=32)]
    assert matched(clips) == {(0, 8)}


def test_what_a_hot_band_holds_is_not_compared_with_everything():
    """500 clips of one title card: as many comparisons as clips, not as many as pairs, and all of them found."""
    looks = views([encode([film(8140)[0]] * 12)])[0].looks
    N = 500
    many = Signatures(np.tile(looks, N), np.zeros(N * len(looks), np.uint64), np.arange(N + 1) * len(looks))
    found = Index(many, np.ones(N, bool)).ask(many, mutual=True)
    assert len(found) < 3 * N and set(found.reshape(-1).tolist()) == set(range(N))


@pytest.mark.parametrize("fresh", [0, 250, 499])
def test_a_clip_that_comes_to_a_hot_band_is_compared_as_if_it_had_been_there(fresh):
    N, hash = 500, np.random.default_rng(8141).integers(1, 1 << 63, 1, np.uint64)
    many = Signatures(np.tile(hash, 4 * N), np.tile(hash, 4 * N), np.arange(N + 1) * 4)
    whole = Index(many, np.ones(N, bool)).ask(many, mutual=True)
    new = np.arange(N) == fresh
    for mutual in (True, False):
        later = np.sort(Index(many, new).ask(many, mutual), axis=1)
        assert {tuple(p) for p in later.tolist()} == {tuple(p) for p in whole.tolist() if fresh in p}, mutual
    assert len(whole) == 2 * N - 3


def walks(count, length, seed):
    """Random signatures whose neighbouring moments differ in few bits."""
    rng = np.random.default_rng(seed)
    steps = np.uint64(1) << rng.integers(0, 63, (count, length), dtype=np.uint64)
    start = rng.integers(1, 1 << 63, (count, 1), dtype=np.uint64)
    return np.bitwise_xor.accumulate(np.concatenate([start, steps[:, 1:]], axis=1), axis=1) | np.uint64(1 << 63)


def test_new_against_old_finds_what_all_against_all_finds():
    N, T = 400, 20
    looks, moves = walks(N, T, 8150), walks(N, T, 8151)
    for table, seed in ((looks, 8152), (moves, 8153)):  # every fifth new clip is an old one with three bits flipped
        flips = np.uint64(1) << np.random.default_rng(seed).integers(0, 63, (40, T, 3), dtype=np.uint64)
        table[200:400:5] = table[0:200:5] ^ np.bitwise_xor.reduce(flips, axis=2)
    both = Signatures(looks.reshape(-1), moves.reshape(-1), np.arange(0, N * T + 1, T))
    new = np.arange(N) >= 200
    whole, some = near.pairs([both], np.ones(N, bool)), near.pairs([both], new)
    assert len(some["one"]) == 40 and (some["other"] - some["one"] == 200).all()
    assert all((whole[name] == some[name]).all() for name in whole)


def alike(asking, index, new):
    """The pairs that share enough bands, found by comparing every clip with every other."""
    sides = [[{} for _ in range(len(index))] for _ in range(2)]
    for side, signatures in enumerate((asking, index)):
        for block in signatures.blocks():
            for band, values in enumerate(entries(*block)):
                for entry in values.tolist():
                    sides[side][entry & 0xFFFFFFFF].setdefault(band, set()).add(entry >> 32)
    both = [(i, j) for i in range(len(index)) for j in range(len(index)) if i != j and (new[i] or new[j])]
    return {
        (i, j)
        for i, j in both
        if sum(bool(values & sides[1][j].get(band, set())) for band, values in sides[0][i].items()) >= VOTES
    }


@pytest.mark.parametrize("mutual", [True, False])
def test_the_index_finds_the_pairs_that_comparing_everything_finds(monkeypatch, mutual):
    """In blocks of a few clips, with clips of no moments between; no band is hot."""
    monkeypatch.setattr(bands, "BLOCK", 50)
    rng = np.random.default_rng(8160)
    lengths = rng.integers(0, 9, 60)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    base = rng.integers(1, 1 << 63, (2, 12), dtype=np.uint64)
    pick = rng.integers(0, 12, (2, 2, starts[-1]))
    flips = np.uint64(1) << rng.integers(0, 63, (2, 2, starts[-1]), dtype=np.uint64)
    index, asking = (Signatures(*(base[k][pick[side, k]] ^ flips[side, k] for k in (0, 1)), starts) for side in (0, 1))
    asking = index if mutual else asking
    for new in (np.ones(60, bool), np.arange(60) % 7 == 0):
        made = Index(index, new)
        assert max(np.unique(band >> np.uint64(32), return_counts=True)[1].max() for band in made.bands) <= HOT
        found = [tuple(pair) for pair in made.ask(asking, mutual).tolist()]
        wanted = {(min(p), max(p)) if mutual else p for p in alike(asking, index, new)}
        assert found == sorted(wanted) and len(found) > 50


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Twelve films in folders of their own; in `late` two re-encoded ones and the very frames of another."""
    folder = tmp_path_factory.mktemp("duplicates")
    films = {f"{i:02d}/film.mp4": moving(8200 + i, 2 * FPS + 6) for i in range(6)}
    root, early = prepare_films(folder, films)
    version, _ = score.score_dataset(root, early)
    find_duplicates(root, early, version)
    for number, crf, name in ((1, 32, "a"), (4, 30, "b")):
        write(moving(8200 + number, 2 * FPS + 6), folder / "archive" / f"late_{name}" / "film.mp4", crf=crf)
    # The same pictures in another container: other bytes, the same clip.
    same = (folder / "archive" / "02" / "film.mp4").read_bytes()
    (folder / "archive" / "late_c").mkdir()
    (folder / "archive" / "late_c" / "film.mp4").write_bytes(same + (8).to_bytes(4, "big") + b"free")
    root, late = prepare_films(folder, films)
    score.score_dataset(root, late)
    return root, early, late, version


def paths(root, dataset):
    return {(part.id, row["key"]): row["path"].split("/")[0] for part in dataset.parts for row in part.rows()}


def found_pairs(root, dataset):
    names = paths(root, dataset)
    pairs = read_pairs(root, dataset)
    return {(frozenset((names[p["part"], p["key"]], names[p["other_part"], p["other"]])), p["kind"]) for p in pairs}


WANTED = {
    (frozenset(("01", "late_a")), "near"),
    (frozenset(("04", "late_b")), "near"),
    (frozenset(("02", "late_c")), "exact"),
}


def test_copies_that_come_later_are_found_against_what_is_there(archive):
    root, early, late, version = archive
    assert read_pairs(root, early) == []
    find_duplicates(root, late, version)
    assert found_pairs(root, late) == WANTED


def test_the_table_is_the_same_whether_it_grew_or_was_made_at_once(archive, monkeypatch):
    root, early, late, version = archive
    compared = []
    real = near.pairs
    monkeypatch.setattr(near, "pairs", lambda s, new: compared.append(int(new.sum())) or real(s, new))
    files.replace_json(
        {"table": duplicates.url(root, early, version).rsplit("/", 1)[1]},
        files.join(root, "near", duplicates.version(version), "a.json"),
    )
    grown = duplicates.compare(root, late, version)
    files.remove(files.join(root, "near", duplicates.version(version), "a.json"))
    whole = duplicates.compare(root, late, version)
    find_duplicates(root, late, version)
    assert grown.equals(whole) and len(whole) == 3
    assert compared[0] < compared[1] == late.clips - 1, "copies of the same bytes are compared once"


def test_a_copy_is_compared_once_the_clip_it_copied_is_gone(archive):
    """Of clips with the same bytes only the first is compared; when its part goes, the next one has to be."""
    root, _, late, version = archive
    find_duplicates(root, late, version)
    exact = next(pair for pair in read_pairs(root, late) if pair["kind"] == "exact")
    fewer = [part for part in late.parts if part.id != exact["part"]]
    without = datasets.Dataset("a", "x", fewer, {})
    clips = duplicates._clips(root, without, version)
    new, _ = duplicates._known(root, without, version, clips)
    keys = clips["key"].to_pylist()
    assert [keys[i] for i in np.flatnonzero(new)] == [exact["other"]]


def test_clips_without_scores_are_asked_for(tmp_path):
    root, dataset = prepare_films(tmp_path, {"film.mp4": moving(8300, 12)})
    with pytest.raises(InputError, match="has no scores"):
        find_duplicates(root, dataset, scores.version())
    assert read_pairs(root, dataset) is None


def pair(one, other, kind="near"):
    numbers = {"look": 1.0, "move": 2.0, "share": 1.0, "shift": 0.0, "how": ""}
    return {"part": "p", "key": one, "other_part": "p", "other": other, "kind": kind} | numbers


def told(pairs, order="abcdefgh", usable="abcdefgh"):
    found = repeats(pairs, lambda clip: order.index(clip[1]), {("p", name) for name in usable})
    return {clip[1]: (repeat.key, repeat.kind) for clip, repeat in found.items()}


def test_nothing_is_dropped_that_no_kept_clip_shows():
    """a is like b and b like c, but c is not like a: dropping both b and c would lose what c alone shows."""
    assert told([pair("a", "b"), pair("b", "c")]) == {"b": ("a", "near")}
    assert told([pair("a", "b"), pair("b", "c")], order="bac") == {"a": ("b", "near"), "c": ("b", "near")}


def test_a_clip_that_is_dropped_for_another_reason_makes_none_a_repetition():
    assert told([pair("a", "b")], usable="b") == {}
    assert told([pair("a", "b", "exact"), pair("a", "c", "exact")], usable="bc") == {"c": ("b", "exact")}


def test_copies_share_the_likenesses_of_the_first():
    pairs = [pair("a", "c", "exact"), pair("a", "b")]
    assert told(pairs, order="cba") == {"a": ("c", "exact"), "b": ("c", "near")}
    sides = {frozenset((p["key"], p["other"])) for p in across(pairs)}
    assert sides == {frozenset("ab"), frozenset("ac"), frozenset("bc")}
