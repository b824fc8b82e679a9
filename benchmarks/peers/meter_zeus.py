"""Zeus's windows, on whatever it finds."""

from meter_serve import serve


def get_ready():
    from zeus.monitor import ZeusMonitor

    monitor = ZeusMonitor(gpu_indices=None)

    def start():
        monitor.begin_window("window", sync_execution=False)

    def stop():
        found = monitor.end_window("window", sync_execution=False)
        return {
            "duration_s": found.time,
            "gpu_j": found.gpu_energy or None,
            "cpu_j": found.cpu_energy,
            "dram_j": found.dram_energy,
        }

    return start, stop


serve(get_ready)
