"""CodeCarbon's task windows, tracking the machine, which is its default."""

from meter_serve import serve


def get_ready():
    from codecarbon import OfflineEmissionsTracker

    tracker = OfflineEmissionsTracker(country_iso_code="DEU", save_to_file=False, log_level="error")
    number = 0

    def start():
        nonlocal number
        number += 1
        tracker.start_task(f"task {number}")

    def stop():
        data = tracker.stop_task(f"task {number}")
        kwh = {
            "energy_j": data.energy_consumed,
            "cpu_j": data.cpu_energy,
            "ram_j": data.ram_energy,
            "gpu_j": data.gpu_energy,
        }
        return {"duration_s": data.duration, **{name: 3.6e6 * value for name, value in kwh.items()}}

    return start, stop


serve(get_ready)
