// SPDX-License-Identifier: Apache-2.0
/* cuda_streams.cc -- see cuda_streams.h.
 *
 * A stream is a queue. Which stream goes on next is drawn by chance, so an order that nothing but
 * luck keeps does not last: a copy into memory that is still read, or out of memory that the host
 * has changed, shows in the result. Waiting that nothing could end is a failure, not a hang.
 */
#include "tests/gpu/cuda_streams.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

struct CUevent_st {
    uint64_t n_recorded, n_done;
};

namespace
{

struct command {
    std::function<void()> work; /* or a wait until n records of an event are done */
    cudaEvent_t event;
    uint64_t n;
};

enum { RUNS_ONE_IN = 6 }; /* calls that find something to be done by chance */

} // namespace

struct CUstream_st {
    std::deque<command> commands;
};

namespace
{

std::vector<cudaStream_t> streams;
uint64_t random_state = 0x2545f4914f6cdd1du;

bool is_late()
{
    const char *how = getenv("HEADRACE_TEST_PLAYED");

    return how && strcmp(how, "late") == 0;
}

unsigned draw(size_t n)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned) ((random_state >> 32) % n);
}

bool can_go_on(cudaStream_t stream)
{
    if (stream->commands.empty())
        return false;
    const command &first = stream->commands.front();

    return !first.event || first.event->n_done >= first.n;
}

/* One command of a stream drawn from those that can go on. @return false: there is none */
bool step()
{
    std::vector<cudaStream_t> able;

    for (cudaStream_t stream : streams)
        if (can_go_on(stream))
            able.push_back(stream);
    if (able.empty())
        return false;
    cudaStream_t stream = able[draw(able.size())];
    const command first = std::move(stream->commands.front());

    stream->commands.pop_front();
    if (first.work)
        first.work();
    return true;
}

template <class Done> void wait(Done done)
{
    while (!done())
        if (!step()) {
            fprintf(stderr, "cuda_streams: waits for what never comes\n");
            abort();
        }
}

void all_done()
{
    while (step())
        ;
}

void by_chance()
{
    if (!is_late())
        all_done();
    else if (draw(RUNS_ONE_IN) == 0)
        step();
}

} // namespace

void player::ask(cudaStream_t stream, std::function<void()> work)
{
    stream->commands.push_back({std::move(work), nullptr, 0});
    by_chance();
}

void hr_played_ask(cudaStream_t stream, void (*run)(void *arg), void *arg)
{
    player::ask(stream, [run, arg] { run(arg); });
}

/* ---- the runtime's functions ---------------------------------------------------------------- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *ret, unsigned int flags)
{
    (void) flags;
    *ret = new CUstream_st;
    streams.push_back(*ret);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    all_done();
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == stream) {
            streams.erase(streams.begin() + (long) i);
            delete stream;
            if (streams.empty())
                hr_played_last_stream_ends();
            return cudaSuccess;
        }
    return cudaErrorInvalidValue;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    if (!stream)
        return cudaErrorInvalidValue;
    wait([stream] { return stream->commands.empty(); });
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int flags)
{
    (void) flags;
    if (!stream || !event)
        return cudaErrorInvalidValue;
    stream->commands.push_back({nullptr, event, event->n_recorded});
    by_chance();
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *ret, unsigned int flags)
{
    (void) flags;
    *ret = new CUevent_st{};
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    all_done();
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    if (!event || !stream)
        return cudaErrorInvalidValue;
    const uint64_t n = ++event->n_recorded;

    player::ask(stream, [event, n] { event->n_done = n; });
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    if (!event)
        return cudaErrorInvalidValue;
    by_chance();
    return event->n_done >= event->n_recorded ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    if (!event)
        return cudaErrorInvalidValue;
    wait([event] { return event->n_done >= event->n_recorded; });
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t size, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    (void) kind;
    if (hr_played_crosses(dst, size) || hr_played_crosses(src, size))
        return cudaErrorInvalidValue;
    player::ask(stream, [=] { memcpy(dst, src, size); });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t size, cudaStream_t stream)
{
    player::ask(stream, [=] { memset(p, value, size); });
    return cudaSuccess;
}

/* The driver waits for the device, too. */
cudaError_t cudaFree(void *p)
{
    all_done();
    free(p);
    return cudaSuccess;
}
