"""What make bench-lake measures: bytes, speed and questions of a lake, beside other ways of keeping the same rows."""
