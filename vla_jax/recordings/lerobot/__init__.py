"""Data sets in LeRobot's format, v2.1 and v3.0, read as files: parquet by pyarrow, video by PyAV."""
