// SPDX-License-Identifier: Apache-2.0
/* cuda_player.cc -- see cuda_player.h. */
#include "tests/gpu/cuda_player.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <setjmp.h>
#include <ucontext.h>
#include <vector>

#undef threadIdx
#undef blockIdx
#undef gridDim

namespace player
{

position thread_idx, block_idx, grid_dim;

namespace
{

enum { THREADS_MAX = 256, LANES = 32, WARPS_MAX = THREADS_MAX / LANES, STACK_BYTES = 128 << 10 };
enum where { READY, AT_WARP, AT_BLOCK, DONE };

struct pending {
    void *to;
    const void *from;
    size_t n_bytes;
};

struct fiber {
    jmp_buf at;
    where state;
    std::vector<pending> copies;
};

/* A warp's exchange; two sets, so that a lane may begin the next before all have read this one. */
struct warp {
    unsigned char given[2][LANES][32];
    unsigned turn[LANES], n_waiting, n_live;
};

fiber fibers[THREADS_MAX];
warp warps[WARPS_MAX];
jmp_buf scheduler;
ucontext_t start_context;
std::vector<unsigned> ready;
unsigned current, n_created, n_threads_now, n_at_block, n_live;
const std::function<void()> *kernel_now;
uint64_t random_state = 0x9e3779b97f4a7c15u;
const unsigned char *shared_base;

unsigned draw(unsigned n)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned) (random_state >> 32) % n;
}

[[noreturn]] void give_up(const char *why)
{
    fprintf(stderr, "cuda_player: %s\n", why);
    abort();
}

/* The fiber's life: one kernel after the other, each begun when the scheduler jumps here. */
void fiber_main()
{
    while (true) {
        if (_setjmp(fibers[current].at) == 0)
            _longjmp(scheduler, 1);
        (*kernel_now)();
        fibers[current].state = DONE;
        if (!fibers[current].copies.empty())
            give_up("a copy that nobody waits for");
    }
}

void create(unsigned i)
{
    current = i;
    if (_setjmp(scheduler) != 0)
        return;
    getcontext(&start_context);
    start_context.uc_stack.ss_sp = malloc(STACK_BYTES);
    start_context.uc_stack.ss_size = STACK_BYTES;
    start_context.uc_link = nullptr;
    makecontext(&start_context, fiber_main, 0);
    setcontext(&start_context);
}

void wait_as(where state)
{
    fibers[current].state = state;
    if (_setjmp(fibers[current].at) == 0)
        _longjmp(scheduler, 1);
}

void release_warp(unsigned w)
{
    for (unsigned i = w * LANES; i < (w + 1) * LANES && i < n_threads_now; i++)
        if (fibers[i].state == AT_WARP) {
            fibers[i].state = READY;
            ready.push_back(i);
        }
    warps[w].n_waiting = 0;
}

void release_block()
{
    for (unsigned i = 0; i < n_threads_now; i++)
        if (fibers[i].state == AT_BLOCK) {
            fibers[i].state = READY;
            ready.push_back(i);
        }
    n_at_block = 0;
}

/* What the fiber that has just stopped changes for the others. */
void settle()
{
    warp &w = warps[current / LANES];

    switch (fibers[current].state) {
    case AT_WARP:
        w.n_waiting++;
        break;
    case AT_BLOCK:
        n_at_block++;
        break;
    default:
        w.n_live--;
        n_live--;
        break;
    }
    if (w.n_waiting > 0 && w.n_waiting == w.n_live)
        release_warp(current / LANES);
    if (n_at_block > 0 && n_at_block == n_live)
        release_block();
}

void run_block()
{
    ready.clear();
    n_live = n_threads_now;
    n_at_block = 0;
    for (unsigned w = 0; w < WARPS_MAX; w++)
        warps[w].n_waiting = warps[w].n_live = 0;
    for (unsigned i = 0; i < n_threads_now; i++) {
        fibers[i].state = READY;
        warps[i / LANES].turn[i % LANES] = 0;
        warps[i / LANES].n_live++;
        ready.push_back(i);
    }
    while (n_live > 0) {
        if (ready.empty())
            give_up("no thread can go on: a barrier that not all reach");
        std::swap(ready[draw((unsigned) ready.size())], ready.back());
        current = ready.back();
        ready.pop_back();
        thread_idx = {current, 0, 0};
        if (_setjmp(scheduler) == 0)
            _longjmp(fibers[current].at, 1);
        settle();
    }
}

} // namespace

void launch(dim3 grid, unsigned n_threads, const std::function<void()> &kernel)
{
    if (n_threads > THREADS_MAX)
        give_up("too many threads");
    for (; n_created < n_threads; n_created++)
        create(n_created);
    kernel_now = &kernel;
    n_threads_now = n_threads;
    grid_dim = {grid.x, grid.y, grid.z};
    for (unsigned y = 0; y < grid.y; y++)
        for (unsigned x = 0; x < grid.x; x++) {
            block_idx = {x, y, 0};
            run_block();
        }
}

void barrier()
{
    wait_as(AT_BLOCK);
}

const unsigned char *exchange(const void *mine, size_t n_bytes)
{
    warp &w = warps[current / LANES];
    const unsigned lane = current % LANES, turn = w.turn[lane]++ % 2;

    memcpy(w.given[turn][lane], mine, n_bytes);
    wait_as(AT_WARP);
    return w.given[turn][0];
}

void copy_async(void *to, const void *from, size_t n_bytes)
{
    if ((uintptr_t) from % n_bytes != 0)
        give_up("an asynchronous copy that is not aligned");
    if (draw(2))
        memcpy(to, from, n_bytes);
    else
        fibers[current].copies.push_back({to, from, n_bytes});
}

void copy_wait()
{
    for (const pending &copy : fibers[current].copies)
        memcpy(copy.to, copy.from, copy.n_bytes);
    fibers[current].copies.clear();
}

uint32_t address_of(const void *p)
{
    if (!shared_base)
        shared_base = (const unsigned char *) p;
    return (uint32_t) ((const unsigned char *) p - shared_base);
}

unsigned char *pointer_to(uint32_t address)
{
    if (address % 16 != 0)
        give_up("an address in shared memory that is not aligned");
    return const_cast<unsigned char *>(shared_base) + address;
}

} // namespace player
