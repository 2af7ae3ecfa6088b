// PromptCache as Python sees it, and the jobs that it gives.

#include <memory>

#include "prompt_cache.h"
#include "prompt_job.h"
#include "text.h"

namespace quire {

namespace {

struct CacheObject {
    PyObject_HEAD
    StepCache* steps;
    PyObject* blocks_type;  // PromptBlocks
};

struct JobObject {
    PyObject_HEAD
    PromptJob* job;
    PyObject* cache;
    PyObject* encoder;
    bool is_busy;
};

PyObject* block_names;  // of the arguments of PromptBlocks

CacheObject* cache_of(PyObject* self) { return reinterpret_cast<CacheObject*>(self); }
JobObject* job_of(PyObject* self) { return reinterpret_cast<JobObject*>(self); }

PyObject* new_cache(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
    static const char* const NAMES[] = {"blocks_type", "max_bytes", nullptr};
    PyObject* blocks_type;
    Py_ssize_t max_bytes = 64 * 1024 * 1024;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$n", const_cast<char**>(NAMES), &blocks_type, &max_bytes)) return nullptr;
    if (max_bytes < 1) return PyErr_SetString(PyExc_ValueError, "max_bytes must be at least 1"), nullptr;
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        auto steps = std::make_unique<StepCache>(size_t(max_bytes));
        PyObject* object = type->tp_alloc(type, 0);
        if (object == nullptr) return nullptr;
        cache_of(object)->steps = steps.release();
        cache_of(object)->blocks_type = Py_NewRef(blocks_type);
        return object;
    });
}

void free_cache(PyObject* self) {
    delete cache_of(self)->steps;
    Py_XDECREF(cache_of(self)->blocks_type);
    Py_TYPE(self)->tp_free(self);
}

void free_job(PyObject* self) {
    JobObject* object = job_of(self);
    delete object->job;
    Py_XDECREF(object->cache);
    Py_XDECREF(object->encoder);
    Py_TYPE(self)->tp_free(self);
}

// A str, or None for nothing. -1 with an exception.
int optional_text(PyObject* object, std::optional<std::string_view>& text) {
    if (object == Py_None) return 0;
    Py_ssize_t size = 0;
    const char* bytes = PyUnicode_AsUTF8AndSize(object, &size);
    if (bytes == nullptr) return -1;
    text = std::string_view(bytes, size_t(size));
    return 0;
}

// Begins a job; false with an exception.
bool begins(PromptJob& job, const PromptEncoder& encoder, PyObject* pieces, PyObject* adapter, PyObject* salt, bool is_framed) {
    std::optional<std::string_view> adapter_text, salt_text;
    if (!PyList_CheckExact(pieces)) return PyErr_SetString(PyExc_TypeError, "pieces: a list of str is wanted"), false;
    if (optional_text(adapter, adapter_text) < 0 || optional_text(salt, salt_text) < 0) return false;
    if (is_framed && !encoder.has_frame) return PyErr_SetString(PyExc_ValueError, "is_framed: the encoder has no frame"), false;
    return job.begin(pieces, adapter_text, salt_text, is_framed);
}

bool is_encoder(PyObject* object) {
    if (Py_TYPE(object) != &PromptEncoderType) PyErr_SetString(PyExc_TypeError, "encoder: a PromptEncoder is wanted");
    return Py_TYPE(object) == &PromptEncoderType;
}

// (encoder, pieces, adapter, salt, is_framed): a job that has begun; nullptr with an exception.
PyObject* begun(PyObject* self, PyObject* const* args) {
    if (!is_encoder(args[0])) return nullptr;
    PromptEncoder& encoder = encoder_of(args[0]);
    auto job = std::make_unique<PromptJob>(*cache_of(self)->steps, encoder);
    if (!begins(*job, encoder, args[1], args[2], args[3], args[4] == Py_True)) return nullptr;
    JobObject* object = PyObject_New(JobObject, &PromptJobType);
    if (object == nullptr) return nullptr;
    object->job = job.release();
    object->cache = Py_NewRef(self);
    object->encoder = Py_NewRef(args[0]);
    object->is_busy = false;
    return reinterpret_cast<PyObject*>(object);
}

PyObject* blocks_of(const PromptJob& job, PyObject* blocks_type) {
    const Ref num_tokens(PyLong_FromUnsignedLongLong(job.num_tokens())), block_tokens(PyLong_FromSize_t(job.block_size()));
    const Ref hashes(job.hashes());
    if (!num_tokens || !block_tokens || !hashes) return nullptr;
    PyObject* const values[] = {num_tokens.get(), block_tokens.get(), hashes.get()};
    return PyObject_Vectorcall(blocks_type, values, 0, block_names);
}

bool has_arguments(Py_ssize_t given, Py_ssize_t wanted) {
    if (given != wanted) PyErr_Format(PyExc_TypeError, "%zd arguments are wanted, not %zd", wanted, given);
    return given == wanted;
}

PyObject* cache_job(PyObject* self, PyObject* const* args, Py_ssize_t num_args) {
    if (!has_arguments(num_args, 5)) return nullptr;
    return guarded<PyObject*>(nullptr, [&] { return begun(self, args); });
}

PyObject* cache_read(PyObject* self, PyObject* const* args, Py_ssize_t num_args) {
    if (!has_arguments(num_args, 6)) return nullptr;
    const size_t most = PyLong_AsSize_t(args[5]);
    if (most == size_t(-1) && PyErr_Occurred()) return nullptr;
    return read_at_once(self, args[0], args[1], args[2], args[3], args[4] == Py_True, most);
}

// Whoever is at work on a job may let other threads run: they must not touch it.
class Work {
   public:
    explicit Work(JobObject* object) : object_(object), may_(!object->is_busy) {
        if (may_) object->is_busy = true;
        else PyErr_SetString(PyExc_RuntimeError, "another thread is at work on this job");
    }
    Work(const Work&) = delete;
    ~Work() { if (may_) object_->is_busy = false; }
    explicit operator bool() const { return may_; }

   private:
    JobObject* object_;
    bool may_;
};

PyObject* job_advance(PyObject* self, PyObject* number) {
    const Py_ssize_t num_chars = PyNumber_AsSsize_t(number, PyExc_OverflowError);
    if (num_chars == -1 && PyErr_Occurred()) return nullptr;
    const Work work(job_of(self));
    if (!work) return nullptr;
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        if (num_chars > 0 && !job_of(self)->job->advance(size_t(num_chars))) return nullptr;
        Py_RETURN_NONE;
    });
}

PyObject* job_blocks(PyObject* self, PyObject*) {
    const Work work(job_of(self));
    if (!work) return nullptr;
    return guarded<PyObject*>(nullptr, [&] { return blocks_of(*job_of(self)->job, cache_of(job_of(self)->cache)->blocks_type); });
}

PyObject* missing_chars(PyObject* self, void*) { return PyLong_FromSize_t(job_of(self)->job->missing_chars()); }
PyObject* num_job_steps(PyObject* self, void*) { return PyLong_FromSize_t(job_of(self)->job->num_steps()); }
PyObject* size_bytes(PyObject* self, void*) { return PyLong_FromSize_t(cache_of(self)->steps->size_bytes()); }
Py_ssize_t num_steps(PyObject* self) { return Py_ssize_t(cache_of(self)->steps->size()); }

PyMethodDef CACHE_METHODS[] = {
    {"job", reinterpret_cast<PyCFunction>(cache_job), METH_FASTCALL, "job(encoder, pieces, adapter, salt, is_framed): what reads the prompt."},
    {"read", reinterpret_cast<PyCFunction>(cache_read), METH_FASTCALL,
     "read(encoder, pieces, adapter, salt, is_framed, max_new_chars): the prompt's blocks; None: more of it is new."},
    {nullptr, nullptr, 0, nullptr},
};
PyGetSetDef CACHE_GETTERS[] = {
    {"size_bytes", size_bytes, nullptr, "What the steps take, about.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};
PySequenceMethods CACHE_SEQUENCE = {.sq_length = num_steps};

PyMethodDef JOB_METHODS[] = {
    {"advance", job_advance, METH_O, "advance(num_chars): tokenise segments until so many are done, at least one."},
    {"blocks", job_blocks, METH_NOARGS, "blocks(): what was read."},
    {nullptr, nullptr, 0, nullptr},
};
PyGetSetDef JOB_GETTERS[] = {
    {"missing_chars", missing_chars, nullptr, "Text still to be tokenised.", nullptr},
    {"num_steps", num_job_steps, nullptr, "Steps over what is known, the root among them.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

}  // namespace

PyObject* read_at_once(
    PyObject* cache, PyObject* encoder, PyObject* pieces, PyObject* adapter, PyObject* salt, bool is_framed, size_t most
) {
    if (!is_encoder(encoder)) return nullptr;
    const Ref held = Ref::borrowed(encoder), held_cache = Ref::borrowed(cache);  // others may run while Python tokenises
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        PromptJob job(*cache_of(cache)->steps, encoder_of(encoder));
        if (!begins(job, encoder_of(encoder), pieces, adapter, salt, is_framed)) return nullptr;
        if (job.missing_chars() > most) Py_RETURN_NONE;
        if (!job.advance(most)) return nullptr;
        return blocks_of(job, cache_of(cache)->blocks_type);
    });
}

PyTypeObject PromptCacheType = {
    .ob_base = PyVarObject_HEAD_INIT(nullptr, 0)
    .tp_name = "quire_router_native.PromptCache",
    .tp_basicsize = sizeof(CacheObject),
    .tp_dealloc = free_cache,
    .tp_as_sequence = &CACHE_SEQUENCE,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "PromptCache(blocks_type, *, max_bytes): prompts that were read, by their segments.",
    .tp_methods = CACHE_METHODS,
    .tp_getset = CACHE_GETTERS,
    .tp_new = new_cache,
};
PyTypeObject PromptJobType = {
    .ob_base = PyVarObject_HEAD_INIT(nullptr, 0)
    .tp_name = "quire_router_native.PromptJob",
    .tp_basicsize = sizeof(JobObject),
    .tp_dealloc = free_job,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = "One prompt on its way.",
    .tp_methods = JOB_METHODS,
    .tp_getset = JOB_GETTERS,
};

}  // namespace quire

int add_prompt_cache(PyObject* module) {
    using namespace quire;
    const struct { const char* name; size_t value; } constants[] = {
        {"MIN_CHARS", MIN_CHARS}, {"SEGMENT_CHARS", SEGMENT_CHARS}, {"MAX_KEPT_CHARS", MAX_KEPT_CHARS}, {"MAX_NEW_CHARS", MAX_NEW_CHARS},
        {"MAX_WORDS", MAX_WORDS}, {"MAX_WORD_CHARS", MAX_WORD_CHARS}, {"MAX_LEARNT", MAX_LEARNT},
    };
    for (const auto& constant : constants)
        if (PyModule_AddIntConstant(module, constant.name, long(constant.value)) < 0) return -1;
    block_names = Py_BuildValue("(sss)", "num_tokens", "block_tokens", "hashes");
    if (block_names == nullptr || PyType_Ready(&PromptJobType) < 0) return -1;
    return PyModule_AddType(module, &PromptEncoderType) < 0 ? -1 : PyModule_AddType(module, &PromptCacheType);
}
