"""The judges that any recipe may name, one file each: the file's name is the judge's."""
