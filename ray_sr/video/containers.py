"""Opening clips that nobody vouched for, and what FFmpeg's numbers mean.

Only containers and the file protocol of a list are opened: playlists and the like could name other files and
addresses. For the decoder process.
"""

from __future__ import annotations

from typing import Any

import av
import av.error
from av.container import InputContainer
from av.video.reformatter import Interpolation

CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,nut,ivf,gif,apng,h264,hevc,m4v,"
    "mxf,dv,yuv4mpegpipe,webp"
)
SCALING = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)
_MOST_STREAMS = 64


class ClipError(Exception):
    """Why a clip cannot be taken, in words for its owner."""


def open_clip(path: str) -> InputContainer:
    """The container of a local file. Raises ClipError."""
    known = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        container = av.open(f"file:{path}", "r", metadata_errors="replace", container_options=known)
    except (av.error.FFmpegError, ValueError) as error:
        raise ClipError(f"cannot be opened as a clip ({words(error)})") from None
    if len(container.streams) > _MOST_STREAMS:
        raise ClipError(f"has {len(container.streams)} streams, more than {_MOST_STREAMS}")
    return container


def main_video(container: InputContainer) -> Any:
    """The video stream that players show: no cover picture. Raises ClipError."""
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams or streams[0].codec_context is None:
        raise ClipError("has no video that can be decoded here")
    return streams[0]


def sws_matrix(matrix: int) -> int:
    """swscale's number of the matrix coefficients of ITU-T H.273."""
    return {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}.get(matrix, 5)


def words(error: BaseException) -> str:
    """What an error says, in one line that every terminal takes."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    line = str(text).splitlines()[0][:200]
    return line if line.isprintable() else ascii(line)
