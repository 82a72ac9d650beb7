"""High dynamic range: what a PQ or HLG source shows, by the definitions of the standards, worked out here once more."""

import av
import numpy as np
import pytest

from storage.media import cutting, picture
from storage.media.copying import cut_any
from storage.media.sampling import sample
from storage.media.tones import KNEE, tone_map
from tests.videos import HDR10, RATE, H, W, make, set_options

TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # from BT.709
LIGHTS = [  # of BT.709, in cd/m2
    (0.5, 0.5, 0.5), (26, 26, 26), (100, 100, 100), (203, 203, 203),
    (1000, 1000, 1000), (4000, 4000, 4000), (120, 20, 10), (10, 30, 110),
]  # fmt: skip


def _pq(light):
    """SMPTE ST 2084: cd/m2 -> signal, 0 to 1."""
    y = (np.asarray(light, float) / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


def _hlg(light):
    """ARIB STD-B67 on a screen of 1000 cd/m2: cd/m2 `[..., 3]` -> signal, 0 to 1."""
    luma = np.asarray(light, float) @ [0.2627, 0.6780, 0.0593]
    scene = light / 1000 * np.maximum(luma / 1000, 1e-12)[..., None] ** (1 / 1.2 - 1)
    high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-12)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)


def _wanted(lights):
    """RGB of BT.1886 that our transform promises for light of BT.709."""
    light = np.asarray(lights, float) / 203
    top = light.max(-1, keepdims=True)
    shown = np.where(top > KNEE, KNEE + (1 - KNEE) * (top - KNEE) / (top - KNEE + 1 - KNEE), top)
    return 255 * (light / top * shown) ** (1 / 2.4)


def _bars(path, lights, signal, name):
    """Bars of known light: 10 bits, BT.2020, limited range, tagged with their transfer curve."""
    rgb = signal(np.asarray(lights, float) @ TO_2020.T)[None].repeat(H, 0).repeat(W // len(lights), 1)
    y = rgb @ [0.2627, 0.6780, 0.0593]
    u, v = (rgb[..., 2] - y) / 1.8814, (rgb[..., 0] - y) / 1.4746
    planes = [64 + 876 * y, 512 + 896 * u, 512 + 896 * v]
    planes[1:] = [plane.reshape(H // 2, 2, W // 2, 2).mean((1, 3)) for plane in planes[1:]]
    with av.open(str(path), "w") as out:
        params = f"colorprim=bt2020:transfer={name}:colormatrix=bt2020nc"
        stream = out.add_stream("libx264", rate=RATE, options={"crf": "2", "x264-params": params})
        stream.width, stream.height, stream.pix_fmt = W, H, "yuv420p10le"
        for t in range(8):
            frame = av.VideoFrame(W, H, "yuv420p10le")
            for plane, values in zip(frame.planes, planes, strict=True):
                rows = np.zeros((values.shape[0], plane.line_size // 2), "<u2")
                rows[:, : values.shape[1]] = values.round()
                plane.update(rows.tobytes())
            frame.pts = t
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


CURVES = {"pq": (_pq, "smpte2084", LIGHTS), "hlg": (_hlg, "arib-std-b67", [*LIGHTS[:5], *LIGHTS[6:], LIGHTS[1]])}


@pytest.fixture(scope="module", params=CURVES)
def source(request, tmp_path_factory):
    """(curve, file, the RGB wanted of each of its eight bars)."""
    signal, name, lights = CURVES[request.param]
    path = tmp_path_factory.mktemp("hdr") / "a.mp4"
    return request.param, _bars(path, lights, signal, name), _wanted(lights)


def _middles(frame):
    """The mean colour in the middle of each of eight bars."""
    wide = frame.shape[1] // 8
    return np.stack([frame[8:-8, n * wide + 4 : (n + 1) * wide - 4].reshape(-1, 3).mean(0) for n in range(8)])


def test_clips_show_what_the_definition_says(source, tmp_path, monkeypatch):
    curve, path, wanted = source
    (clip,) = cutting.cut(str(path), str(tmp_path))
    found = _middles(sample((tmp_path / clip["file"]).read_bytes())[0][4])
    print(np.round(np.c_[found, wanted], 1))
    assert clip["notes"] == [f"{curve} mapped to standard range"]
    assert abs(found - wanted).max() < 5 and abs(found[:5] - wanted[:5]).max() < 3.5
    assert abs(_middles(sample(path.read_bytes())[0][4]) - wanted).max() < 4  # the source itself, as readers sample it
    monkeypatch.setattr(picture, "HDR", {})
    cutting.cut(str(path), str(tmp_path))
    flat = _middles(sample((tmp_path / clip["file"]).read_bytes())[0][4])
    assert abs(flat - wanted).max() > 40  # a control: this is what it looks like without


def test_a_clip_does_not_claim_to_be_of_high_range(source, tmp_path):
    (clip,) = cutting.cut(str(source[1]), str(tmp_path))
    with av.open(str(tmp_path / clip["file"])) as container:
        frame = next(container.decode(video=0))
    assert int(frame.color_trc) not in (16, 18) and frame.format.name == "yuv420p"


def test_a_turned_source_is_mapped_and_turned(tmp_path):
    plain, turned = (tmp_path / name for name in ("plain.mp4", "turned.mp4"))
    params = {"x264-params": HDR10, "crf": 4}

    def turn(stream, out):
        set_options(**params)(stream, out)
        stream.set_display_rotation(90)

    make(plain, pix="yuv420p10le", frames=8, edit=set_options(**params))
    make(turned, pix="yuv420p10le", frames=8, edit=turn)
    frames = []
    for path in (plain, turned):
        (clip,) = cutting.cut(str(path), str(tmp_path))
        frames.append(sample((tmp_path / clip["file"]).read_bytes())[0][4].astype(int))
    assert frames[1].shape == (W, H, 3) and abs(np.rot90(frames[0]) - frames[1]).mean() < 10
    assert abs(np.rot90(frames[0], 3) - frames[1]).mean() > 30


def test_brighter_is_never_darker_and_nothing_is_cut_off():
    """All greys of PQ from black to 10,000 cd/m2: rising, and the highlights are told apart."""
    codes = np.linspace(0, 65_535, 4096).astype(np.uint16)[None, :, None].repeat(3, 2)
    grey = tone_map(codes, "pq")[0].astype(int)
    assert (np.diff(grey[:, 1]) >= 0).all() and grey[0].max() == 0 and grey[-1].min() > 250
    assert abs(grey - grey[:, 1:2]).max() <= 1
    bright = tone_map(np.uint16(65_535 * _pq([[[n] * 3 for n in (203, 1000, 4000)]])), "pq")[0, :, 1]
    assert (np.diff(bright.astype(int)) >= 1).all()


def test_colours_outside_of_the_screen_are_clipped_not_wrapped():
    pure = np.uint16([[[47_000, 0, 0], [0, 47_000, 0], [0, 0, 47_000]]])
    made = tone_map(pure, "pq")[0]
    assert (made.argmax(1) == [0, 1, 2]).all() and (made.min(1) == 0).all()


def test_ten_bits_of_standard_range_never_meet_the_map(tmp_path, monkeypatch):
    monkeypatch.setattr(picture, "tone_map", None)
    (clip,) = cutting.cut(str(make(tmp_path / "a.mp4", pix="yuv420p10le")), str(tmp_path))
    assert clip["notes"] == []


def test_a_copy_is_cut_exactly(source, tmp_path):
    (clip,) = cut_any(str(source[1]), str(tmp_path), mode="copy")
    assert clip["notes"][1] == f"not copied: {source[0]}, high dynamic range"
