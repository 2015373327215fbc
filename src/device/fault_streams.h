/* SPDX-License-Identifier: Apache-2.0 */
/* Streams, events and copies of the fault device. Private to device/. */
#ifndef PST_DEVICE_FAULT_STREAMS_H
#define PST_DEVICE_FAULT_STREAMS_H

#include "device/fault_internal.h"

void fault_set_streams(pst_device_ops *ops);
void fault_run_all(fault_device *f);

#endif
