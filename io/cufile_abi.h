/* SPDX-License-Identifier: Apache-2.0 */
/* cufile_abi.h -- the part of cuFile's binary interface that is used, of its versions 1.x.
 * tests/io/test_cufile_abi.c compares it with the library's header where there is one.
 */
#ifndef HR_IO_CUFILE_ABI_H
#define HR_IO_CUFILE_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum {
    HR_CUFILE_SUCCESS = 0,
    HR_CUFILE_ERRORS = 5000, /* its own are beyond */
    HR_CUFILE_NO_DRIVER = 5001,
    HR_CUFILE_NO_PLATFORM = 5007,
    HR_CUFILE_NO_FILE = 5008,
    HR_CUFILE_NO_GPU = 5009,
    HR_CUFILE_CUDA_ERROR = 5011,
    HR_CUFILE_MAPPING_TOO_LARGE = 5016,
    HR_CUFILE_FILE_TYPE = 5018,
    HR_CUFILE_NOT_DIRECT = 5020,
    HR_CUFILE_PERMISSION = 5025,
    HR_CUFILE_ALREADY_OPEN = 5026,
    HR_CUFILE_PINNING_FAILED = 5036,

    HR_CUFILE_HANDLE_FD = 1,
    HR_CUFILE_PARAM_ALLOW_COMPAT_MODE = 1,
    HR_CUFILE_PARAM_FORCE_COMPAT_MODE = 2,
    HR_CUFILE_PARAM_POSIX_MODE = 12,
    HR_CUFILE_PARAM_FALLBACK = 13,

    /* Bits of control_flags: ways through the host's memory. */
    HR_CUFILE_CONTROL_COMPAT_MODE = 1 << 1,
    HR_CUFILE_CONTROL_POSIX_MODE = 1 << 2,
    HR_CUFILE_CONTROL_FALLBACK = 1 << 4,
};

/* By value in two ints. */
struct hr_cufile_error {
    int code;
    int cuda;
};

struct hr_cufile_properties {
    struct {
        unsigned major_version, minor_version;
        size_t poll_thresh_size, max_direct_io_size;
        unsigned status_flags, control_flags;
    } nvfs;
    unsigned feature_flags, max_device_cache_size, per_buffer_cache_size;
    unsigned max_device_pinned_mem_size;
    /* Later versions have more: room for it. */
    unsigned reserved[64];
};

struct hr_cufile_description {
    int type;
    union {
        int fd;
        void *handle;
    } file;
    const void *fs_ops;
};

/* Each pointer is called as the library's function is: cuFile and the name. */
struct hr_cufile_fns {
    struct hr_cufile_error (*DriverOpen)(void);
    struct hr_cufile_error (*DriverGetProperties)(struct hr_cufile_properties *properties);
    struct hr_cufile_error (*HandleRegister)(void **handle, struct hr_cufile_description *d);
    void (*HandleDeregister)(void *handle);
    struct hr_cufile_error (*BufRegister)(const void *base, size_t n_bytes, int flags);
    struct hr_cufile_error (*BufDeregister)(const void *base);
    ssize_t (*Read)(void *handle, void *base, size_t n_bytes, off_t file_offset, off_t base_offset);
    /* Of later versions; NULL where they are not. */
    struct hr_cufile_error (*SetParameterBool)(int param, bool value);
    struct hr_cufile_error (*GetParameterBool)(int param, bool *value);
};

#endif /* HR_IO_CUFILE_ABI_H */
