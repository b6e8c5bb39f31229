// A page opened from the disk may not read other pages, so search lists their titles without a summary.
if (location.protocol === "file:") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}
