// Work without Python's lock, and what Python asks of it meanwhile.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>

namespace fastgen {

// Whether Python wants the calling thread's work to stop: Ctrl-C, or any handler of a signal that raises. Then Python's error is
// set. To be called by work that runs without the lock, on the thread that gave it up.
bool wants_to_stop();

// `wants_to_stop` where the calling thread is the one that handles signals, else nothing. Needs the lock.
std::function<bool()> signals();

// Runs job without Python's lock; throws what it throws, or Python's error where wants_to_stop() said so. When the interpreter
// ends meanwhile, the thread sleeps until the process has ended.
void without_gil(const std::function<void()>& job);

// Runs job with Python's lock, within work that runs without it, on the thread that gave it up. Throws what job throws; where that
// is Python's error, it is set, as wants_to_stop() sets it. A signal that came before the job waits until wants_to_stop().
void with_gil(const std::function<void()>& job);

}  // namespace fastgen
