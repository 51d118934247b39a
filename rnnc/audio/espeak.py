"""The espeak-ng child: reads one JSON job on stdin, writes speech on stdout. Standard library only.

espeak-ng keeps its oscillator phases, its noise and its flutter in global variables that nothing resets: the
same text spoken twice in one process gives two different signals. A fresh process for each job makes the
samples a function of the job (on one platform: the noise is the C library's `rand`), and a crash of the C
code cannot take the caller along.
"""

import array
import ctypes
import json
import struct
import sys

SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: samples go to the callback, the call returns when all are out
UTF8 = 1
RATE, VOLUME, PITCH, RANGE = 1, 2, 3, 4  # espeak_PARAMETER: words per minute; percent; 0..100; 0..100
HEADROOM = 55  # percent; at 100 the output clips
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def main() -> None:
    """Speaks the job on stdin.

    The job is `{"library", "data", "voice", "utterances": [[text, wpm, pitch, range], ...]}`, the first three
    being paths. The answer, native byte order: uint32 sample rate in Hz, then per utterance uint32 count and
    as many int16.
    """
    job = json.load(sys.stdin.buffer)
    lib = ctypes.CDLL(job["library"])
    rate_hz = lib.espeak_Initialize(SYNCHRONOUS, 0, job["data"].encode(), 0)
    if rate_hz <= 0:
        sys.exit(f"espeak-ng: cannot start with data folder {job['data']}")
    if lib.espeak_SetVoiceByFile(job["voice"].encode()) != 0:
        sys.exit(f"espeak-ng: cannot load voice file {job['voice']}")
    lib.espeak_ng_SetRandSeed(ctypes.c_long(1))
    samples = array.array("h")
    collect = CALLBACK(lambda wav, count, events: _extend(samples, wav, count))
    lib.espeak_SetSynthCallback(collect)
    out = sys.stdout.buffer
    out.write(struct.pack("=I", rate_hz))
    for utterance in job["utterances"]:
        del samples[:]
        _speak(lib, *utterance)
        out.write(struct.pack("=I", len(samples)) + samples.tobytes())


def _speak(lib: ctypes.CDLL, text: str, wpm: int, pitch: int, pitch_range: int) -> None:
    for parameter, value in ((VOLUME, HEADROOM), (RATE, wpm), (PITCH, pitch), (RANGE, pitch_range)):
        lib.espeak_SetParameter(parameter, value, 0)
    raw = text.encode()
    if lib.espeak_Synth(raw, ctypes.c_size_t(len(raw) + 1), 0, 1, 0, UTF8, None, None) != 0:
        sys.exit(f"espeak-ng: cannot speak {text!r}")
    lib.espeak_Synchronize()


def _extend(samples: array.array, wav, count: int) -> int:
    if wav and count > 0:
        samples.frombytes(ctypes.string_at(wav, 2 * count))
    return 0


if __name__ == "__main__":
    main()
