"""What any long job needs, whatever it computes: devices, files, checkpoints, logs, pictures, progress, errors."""
