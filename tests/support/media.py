"""Small videos and animations."""

from fractions import Fraction

import av
import numpy as np
from PIL import Image

CLOCK = 90_000


def shade(value, size=(48, 64)):
    return np.full((*size, 3), value, np.uint8)


def write_video(path, times, end, codec="libx264", container=None, size=(48, 64)):
    """A video whose frames begin at `times`, in seconds, the last ending at `end`; each lighter."""
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = "rgb24" if codec == "png" else "yuv420p"
        if codec == "libx264":
            stream.options = {"bf": "0", "preset": "ultrafast", "g": "1"}
            stream.codec_context.time_base = Fraction(1, CLOCK)
        clock = stream.codec_context.time_base or Fraction(1, 25)
        packets = []
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(shade(index % 50 * 4 + 20, size), format="bgr24")
            frame.pts, frame.time_base = round(time / clock), clock
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for packet, begin, after in zip(packets, times, [*times[1:], end], strict=True):
            packet.duration = round((after - begin) / clock)
            file.mux(packet)
    return path


def animation(path, durations=(100, 250, 400), **options):
    pictures = [Image.fromarray(shade(20 + 60 * n)) for n in range(len(durations))]
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=list(durations), **options
    )
    return path
