#include "cpu/machine/bindings/without_gil.h"

#include <chrono>
#include <exception>
#include <stdexcept>
#include <thread>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif

namespace py = pybind11;

namespace fastgen {
namespace {

// Before 3.14 a Python whose interpreter has ended unwinds a thread that asks for the lock, through threads and locks that are
// still in use.
void take_lock(PyThreadState* thread) {
#if defined(__GLIBCXX__)
  try {
    PyEval_RestoreThread(thread);
  } catch (abi::__forced_unwind&) {
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
  }
#else
  PyEval_RestoreThread(thread);
#endif
}

thread_local PyThreadState* released = nullptr;

}  // namespace

bool wants_to_stop() {
  take_lock(released);
  const bool stop = PyErr_Occurred() != nullptr || PyErr_CheckSignals() != 0;  // with_gil() may have heard of it before
  released = PyEval_SaveThread();
  return stop;
}

std::function<bool()> signals() {
  static const py::handle threading = py::module_::import("threading").release();
  if (!threading.attr("current_thread")().is(threading.attr("main_thread")())) return {};
  return &wants_to_stop;
}

void without_gil(const std::function<void()>& job) {
  PyThreadState* const before = released;  // of a call that a signal handler interrupts
  released = PyEval_SaveThread();
  std::exception_ptr failure;
  try {
    job();
  } catch (...) {
    failure = std::current_exception();
  }
  take_lock(released);
  released = before;
  if (PyErr_Occurred()) throw py::error_already_set();
  if (failure) std::rethrow_exception(failure);
}

void with_gil(const std::function<void()>& job) {
  take_lock(released);
  std::exception_ptr failure;
  {
    // The error of an interrupt that ends the work soon: the job runs without it, then it is set again.
    py::error_scope pending;
    if (pending.type == nullptr && PyErr_CheckSignals() != 0) PyErr_Fetch(&pending.type, &pending.value, &pending.trace);
    try {
      job();
    } catch (py::error_already_set& error) {
      failure = std::make_exception_ptr(std::runtime_error("Python's error is set"));
      error.restore();
      if (pending.type == nullptr) PyErr_Fetch(&pending.type, &pending.value, &pending.trace);
    } catch (...) {
      failure = std::current_exception();
    }
  }
  released = PyEval_SaveThread();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace fastgen
