/* SPDX-License-Identifier: Apache-2.0 */
/* test_cufile_abi.c -- what io/cufile_abi.h says of cuFile is what its own header says. Built where
 * that header is found; there is nothing to run.
 */
#include <cufile.h>

#include "io/cufile_abi.h"

#define SAME(ours, theirs) _Static_assert((long) (ours) == (long) (theirs), #ours)

SAME(HR_CUFILE_SUCCESS, CU_FILE_SUCCESS);
SAME(HR_CUFILE_ERRORS, CUFILEOP_BASE_ERR);
SAME(HR_CUFILE_NO_DRIVER, CU_FILE_DRIVER_NOT_INITIALIZED);
SAME(HR_CUFILE_NO_PLATFORM, CU_FILE_PLATFORM_NOT_SUPPORTED);
SAME(HR_CUFILE_NO_FILE, CU_FILE_IO_NOT_SUPPORTED);
SAME(HR_CUFILE_NO_GPU, CU_FILE_DEVICE_NOT_SUPPORTED);
SAME(HR_CUFILE_CUDA_ERROR, CU_FILE_CUDA_DRIVER_ERROR);
SAME(HR_CUFILE_MAPPING_TOO_LARGE, CU_FILE_INVALID_MAPPING_SIZE);
SAME(HR_CUFILE_FILE_TYPE, CU_FILE_INVALID_FILE_TYPE);
SAME(HR_CUFILE_NOT_DIRECT, CU_FILE_DIO_NOT_SET);
SAME(HR_CUFILE_PERMISSION, CU_FILE_PERMISSION_DENIED);
SAME(HR_CUFILE_ALREADY_OPEN, CU_FILE_DRIVER_ALREADY_OPEN);
SAME(HR_CUFILE_PINNING_FAILED, CU_FILE_GPU_MEMORY_PINNING_FAILED);
SAME(HR_CUFILE_HANDLE_FD, CU_FILE_HANDLE_TYPE_OPAQUE_FD);
SAME(HR_CUFILE_PARAM_ALLOW_COMPAT_MODE, CUFILE_PARAM_PROPERTIES_ALLOW_COMPAT_MODE);
SAME(HR_CUFILE_PARAM_FORCE_COMPAT_MODE, CUFILE_PARAM_FORCE_COMPAT_MODE);
SAME(HR_CUFILE_PARAM_POSIX_MODE, CUFILE_PARAM_PROPERTIES_POSIX_IO_MODE);
SAME(HR_CUFILE_PARAM_FALLBACK, CUFILE_PARAM_GDS_FALLBACK_IO);
SAME(HR_CUFILE_CONTROL_COMPAT_MODE, 1 << CU_FILE_ALLOW_COMPAT_MODE);
SAME(HR_CUFILE_CONTROL_POSIX_MODE, 1 << CU_FILE_VANILLA_POSIX_IO_MODE);
SAME(HR_CUFILE_CONTROL_FALLBACK, 1 << CU_FILE_FALLBACK_IO_MODE);
SAME(sizeof(struct hr_cufile_error), sizeof(CUfileError_t));
SAME(offsetof(struct hr_cufile_error, cuda), offsetof(CUfileError_t, cu_err));
SAME(offsetof(struct hr_cufile_properties, nvfs.status_flags),
     offsetof(CUfileDrvProps_t, nvfs.dstatusflags));
SAME(offsetof(struct hr_cufile_properties, nvfs.control_flags),
     offsetof(CUfileDrvProps_t, nvfs.dcontrolflags));
SAME(offsetof(struct hr_cufile_properties, max_device_pinned_mem_size),
     offsetof(CUfileDrvProps_t, max_device_pinned_mem_size));
_Static_assert(sizeof(struct hr_cufile_properties) >= sizeof(CUfileDrvProps_t), "room");
SAME(sizeof(struct hr_cufile_description), sizeof(CUfileDescr_t));
SAME(offsetof(struct hr_cufile_description, file), offsetof(CUfileDescr_t, handle));
SAME(offsetof(struct hr_cufile_description, fs_ops), offsetof(CUfileDescr_t, fs_ops));

/* Every function takes as many arguments, of types that convert. */
void hr_test_calls(void);
void hr_test_calls(void)
{
    CUfileDrvProps_t properties;
    CUfileDescr_t description = {.fs_ops = NULL};
    void *p = NULL;
    bool on = false;
    ssize_t n;

    (void) cuFileDriverOpen();
    (void) cuFileDriverGetProperties(&properties);
    (void) cuFileHandleRegister(&p, &description);
    cuFileHandleDeregister(p);
    (void) cuFileBufRegister(p, (size_t) 0, 0);
    (void) cuFileBufDeregister(p);
    n = cuFileRead(p, p, (size_t) 0, (off_t) 0, (off_t) 0);
    (void) n;
    (void) cuFileSetParameterBool(CUFILE_PARAM_PROPERTIES_ALLOW_COMPAT_MODE, on);
    (void) cuFileGetParameterBool(CUFILE_PARAM_PROPERTIES_ALLOW_COMPAT_MODE, &on);
}
